"""The disk cache: private, whole or absent, and not for ever."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import torch

from medfl.data.cache import RETENTION_DAYS, TensorCache

TENSORS = {"image": torch.arange(24, dtype=torch.float16).reshape(2, 3, 4), "empty": torch.zeros(0)}
DAY = 24 * 3600


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_tensors_come_back(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "cache")
    cache.write("a", TENSORS)
    read = TensorCache(tmp_path / "cache").read("a")
    assert read is not None
    assert set(read) == set(TENSORS)
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert cache.read("b") is None


def test_only_the_owner_can_look_in(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        cache = TensorCache(tmp_path / "state" / "cache")
        cache.write("a", TENSORS)
    finally:
        os.umask(old_mask)
    assert mode(tmp_path / "state" / "cache") == 0o700
    assert mode(only_file(tmp_path / "state" / "cache")) == 0o600


def test_a_folder_that_is_too_open_is_narrowed(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o755)
    TensorCache(tmp_path / "cache")
    assert mode(tmp_path / "cache") == 0o700


@pytest.mark.parametrize("position", [0, 3, 60, -30, -1])
def test_one_flipped_bit_anywhere_is_noticed(tmp_path: Path, position: int) -> None:
    cache = TensorCache(tmp_path)
    cache.write("a", TENSORS)
    path = only_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    assert cache.read("a") is None


@pytest.mark.parametrize("length", [0, 1, 4, 100])
def test_a_cut_off_entry_is_noticed(tmp_path: Path, length: int) -> None:
    cache = TensorCache(tmp_path)
    cache.write("a", TENSORS)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert cache.read("a") is None


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        cache.write("a", TENSORS)
    assert not list(tmp_path.iterdir())


def test_entries_that_nobody_reads_are_deleted(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    for key in ("read", "unread", "young"):
        cache.write(key, TENSORS)
    (tmp_path / "somebody else's.txt").touch()
    for path in tmp_path.iterdir():
        age = (RETENTION_DAYS - 1 if path.name.startswith("young") else RETENTION_DAYS + 1) * DAY
        os.utime(path, (time.time() - age, time.time() - age))
    cache.read("read")
    cache = TensorCache(tmp_path)
    assert cache.read("read") is not None
    assert cache.read("young") is not None
    assert cache.read("unread") is None
    assert (tmp_path / "somebody else's.txt").exists()
