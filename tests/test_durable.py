"""A file is replaced whole or not at all, and its permissions are those that were asked for."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medfl.durable import sync_folder, write_atomically, written_aside


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old and long", b"new", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.usefixtures("umask")
def test_a_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    write_atomically(tmp_path / "public", b"")
    write_atomically(tmp_path / "secret", b"", mode=0o600)
    assert (mode(tmp_path / "public"), mode(tmp_path / "secret")) == (0o644, 0o600)


@pytest.mark.usefixtures("umask")
def test_a_secret_is_never_readable_by_others_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "secret", []
    path.write_bytes(b"old")
    path.chmod(0o644)
    synchronised = os.fsync

    def look(descriptor: int) -> None:
        seen.extend(mode(file) for file in tmp_path.iterdir() if file != path)
        synchronised(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, b"new", mode=0o600)
    assert seen == [0o600]
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_content(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("two_writers_meet")
def test_threads_that_write_one_file_do_not_meet_in_the_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [b"one", b"another"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, story = tmp_path / "file", []
    synchronised, renamed = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        story.append("folder" if folder else f"{os.fstat(descriptor).st_size} bytes")
        synchronised(descriptor)

    def rename(self: Path, target: Path) -> Path:
        story.append("name")
        return renamed(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomically(path, b"seven b")
    assert story == ["7 bytes", "name", "folder"]


def test_a_folder_that_is_gone_cannot_be_synchronised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "gone")


def test_a_file_that_a_library_writes_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "picture.nii.gz"
    path.parent.mkdir()
    with written_aside(path) as draft:
        assert draft.name.endswith(".nii.gz")
        assert draft.name.startswith(".")
        draft.write_bytes(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(OSError, match="full"), written_aside(path) as draft:
        draft.write_bytes(b"ha")
        raise OSError("full")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.nii.gz"]
