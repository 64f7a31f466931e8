"""Files that survive a crash: the old content or the new, never half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `content`, durably.

    Processes and threads may do so at the same time; the last one's content stays.

    Args:
        path: The file; its folder is made if missing.
        content: All of it.
        mode: Permissions, of which the umask is taken away.

    Raises:
        OSError: If it cannot be written; the old content is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named by chance: a process's number is shared by its threads, and by containers on one volume.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with _becoming(path, draft), os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the `with` block ends well.

    For libraries that want a name to write to. It ends as `path` does, since many of them go by
    that, and it is hidden, so that nobody takes it for a result.

    Args:
        path: The file, in a folder that is there.

    Yields:
        Where to write.

    Raises:
        OSError: If it cannot be written; what was at `path` is still there.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    with _becoming(path, draft):
        yield draft
        _sync(draft)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power failure."""
    _sync(folder)


@contextmanager
def _becoming(path: Path, draft: Path) -> Iterator[None]:
    """Give a draft its name, durably, once it is written; none is left if that fails."""
    try:
        yield
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
