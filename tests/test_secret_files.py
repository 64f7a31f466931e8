"""Keys on disk: one whole key whoever comes first, and for its owner only."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medfl.errors import ConfigError
from medfl.secret_files import KEY_BYTES, require_owner_only, secret_key


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
    with pytest.raises(ConfigError, match="found mode 0640"):
        require_owner_only(path)
