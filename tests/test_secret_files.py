"""Keys on disk: one whole key whoever comes first, and for its owner only."""

from __future__ import annotations

import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medfl.errors import ConfigError
from medfl.secret_files import (
    KEY_BYTES,
    changeable,
    exposures,
    require_owner_only,
    secret_key,
)


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key"
    key = secret_key(path)
    assert len(key) == KEY_BYTES
    assert secret_key(path) == key != secret_key(tmp_path / "state" / "other")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(file.name for file in path.parent.iterdir()) == ["key", "other"]


def test_a_process_that_comes_second_takes_the_key_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first = tmp_path / "key", b"1" * KEY_BYTES

    def another_was_faster(count: int) -> bytes:
        path.write_bytes(first)
        path.chmod(0o600)
        return b"2" * count

    monkeypatch.setattr(os, "urandom", another_was_faster)
    assert secret_key(path) == first
    assert path.read_bytes() == first


@pytest.mark.usefixtures("two_writers_meet")
def test_threads_that_make_a_key_at_the_same_time_get_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with ThreadPoolExecutor(2) as pool:
        keys = set(pool.map(secret_key, [path] * 2))
    assert keys == {path.read_bytes()}
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_dies_on_the_way_leaves_no_half_of_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"

    def die(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(os, "fsync", die)
        secret_key(path)
    assert list(tmp_path.iterdir()) == []
    assert len(secret_key(path)) == KEY_BYTES


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    secret_key(path)
    require_owner_only(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=rf"mode 0600\), found mode 0640. chmod 600 {path}"):
        require_owner_only(path)
    with pytest.raises(ConfigError, match="found mode 0640"):
        secret_key(path)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777, 0o1777])
def test_a_folder_that_others_may_enter_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(0o700)
    require_owner_only(folder)
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode 0700\), found mode {mode:04o}. chmod 700"):
        require_owner_only(folder)


def test_what_belongs_to_another_account_is_refused_whatever_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    secret_key(path)
    stranger = 65534
    if os.geteuid() == 0:
        os.chown(path, stranger, -1)
    else:  # then it is this account that is the stranger
        stranger = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    owner = pwd.getpwuid(stranger).pw_name
    with pytest.raises(ConfigError, match=rf"found owner {owner}. Run medfl as {owner}, or: chown"):
        require_owner_only(path)


def test_what_is_missing_is_no_exposure(tmp_path: Path) -> None:
    assert exposures([tmp_path / "none", tmp_path / "none" / "below"]) == []


def test_all_that_is_open_is_counted(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.touch(0o644)
    assert [each.path for each in exposures(paths)] == paths
    with pytest.raises(ConfigError, match=r"a: .* \(2 more like it\.\)"):
        require_owner_only(*paths)


@pytest.mark.parametrize(("mode", "found"), [(0o644, 0), (0o400, 0), (0o664, 1), (0o646, 1)])
def test_a_public_file_may_be_read_and_not_be_written(
    mode: int, found: int, tmp_path: Path
) -> None:
    path = tmp_path / "site.toml"
    path.touch()
    path.chmod(mode)
    assert len(changeable([path])) == found
