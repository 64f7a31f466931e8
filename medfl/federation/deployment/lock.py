"""A lock between processes, which the system releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfl.errors import FederationError


@contextmanager
def exclusive(path: Path, *, noun: str) -> Iterator[None]:
    """Hold the lock of a file for the length of a `with` block, without waiting for it.

    Args:
        path: The file; made if missing, and left behind.
        noun: What is locked, for the error.

    Raises:
        FederationError: If another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FederationError(
                f"{path}: expected {noun} that no other process works on, found one that does."
            ) from None
        yield
    finally:
        os.close(descriptor)
