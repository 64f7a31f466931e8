"""The disk cache: private, whole or absent, and not for ever."""

from __future__ import annotations

import hashlib
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
    (path,) = folder.glob("*.case")
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


def aged(folder: Path, key: str, *, days: float) -> None:
    path = folder / f"{key}.case"
    os.utime(path, (time.time() - days * DAY, time.time() - days * DAY))


def test_beyond_its_size_the_longest_unread_entries_go(tmp_path: Path) -> None:
    TensorCache(tmp_path).write("old", TENSORS)
    one = TensorCache(tmp_path).nbytes
    cache = TensorCache(tmp_path, max_bytes=3 * one)
    for key in ("older", "read"):
        cache.write(key, TENSORS)
    for key, days in (("old", 3), ("older", 4), ("read", 5)):
        aged(tmp_path, key, days=days)
    assert cache.read("read") is not None  # is the youngest now
    cache.write("new", TENSORS)
    assert cache.read("older") is None
    assert all(cache.read(key) is not None for key in ("old", "read", "new"))
    assert cache.nbytes <= 3 * one


def test_an_entry_that_is_being_written_does_not_make_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that fill a small cache must not take each other's drafts for old entries."""
    one, other = (TensorCache(tmp_path / "cache", max_bytes=1) for _ in range(2))
    replace, waiting = Path.replace, ["b"]

    def after_another_write(draft: Path, target: Path) -> Path:
        if waiting:
            other.write(waiting.pop(), TENSORS)
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", after_another_write)
    one.write("a", TENSORS)
    assert one.read("a") is not None


def test_a_cache_can_be_emptied(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "cache")
    for key in ("a", "b"):
        cache.write(key, TENSORS)
    cache.content_digest(Path(__file__))
    (tmp_path / "cache" / "somebody else's.txt").touch()
    assert cache.clear() == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["somebody else's.txt"]
    assert cache.nbytes == 0


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, image = TensorCache(tmp_path / "cache"), tmp_path / "image"
    image.write_bytes(b"one")
    first = cache.content_digest(image)
    assert first == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert TensorCache(tmp_path / "cache").content_digest(image) == first
    before = image.stat()
    image.write_bytes(b"two")
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    assert cache.content_digest(image) == hashlib.sha256(b"two").hexdigest()
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"cut")
    assert cache.content_digest(image) == hashlib.sha256(b"two").hexdigest()
