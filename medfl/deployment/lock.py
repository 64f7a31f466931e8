"""A lock between processes, which the system releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfl.errors import FederationError

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0
"""Patience with who only looks whether a lock is held, which holds it for a moment."""


@contextmanager
def exclusive(path: Path, *, noun: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file for the length of a `with` block.

    Args:
        path: The file; made if missing, and left behind.
        noun: What is locked, for the error, which names the file's folder.
        patience_seconds: How long to wait for another process that is about to end.

    Raises:
        FederationError: If another process holds it.
    """
    deadline = time.monotonic() + patience_seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"{path.parent}: expected {noun} that no other process works on, found one "
                    "that does."
                )
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file, which may be missing.

    For a moment this is a lock itself: only `exclusive` with some patience may meet it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
