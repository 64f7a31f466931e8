"""One writer at a time for everything that a witness and its ledgers agree on.

What the witness remembers is read, compared and written again; two processes that did so at once
would lose each other's patients, and two copies of one ledger would both be charged. A site's state
of a secure sum is written under such a lock too: two answers must not be made from one. The lock is
the system's own (`flock`), which a process that dies gives back, whatever it was doing.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfl.errors import LedgerError

WAIT_SECONDS = 60.0
"""How long to wait for another writer; each holds the lock for some milliseconds."""

_POLL_SECONDS = 0.01


@contextmanager
def exclusive(path: Path, *, seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold a lock file against all other processes and threads; not to be nested.

    Args:
        path: The file (mode 0600); its folder is made with mode 0700 if missing.
        seconds: Longest wait.

    Raises:
        LedgerError: If the file cannot be opened, or another writer holds it for too long.
    """
    descriptor = _locked(path, until=time.monotonic() + seconds, seconds=seconds)
    try:
        yield
    finally:
        # Said aloud, since a child forked meanwhile has a copy that closing would not free.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(path: Path, *, until: float, seconds: float) -> int:
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            pass
        except OSError as error:
            os.close(descriptor)
            raise _unusable(path, error) from None
        os.close(descriptor)
        if time.monotonic() >= until:
            raise LedgerError(
                f"{path}: expected this lock within {seconds:g} s, found it held by "
                "another process. Nothing was written. See who holds it with `fuser`; a process "
                "that hangs there has to be ended.",
                code="ledger-busy",
            )
        time.sleep(_POLL_SECONDS)


def _opened(path: Path) -> int:
    # Opened anew by each: threads that shared a descriptor would share the lock.
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(path, error) from None


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the name still leads to this file: who locks a deleted one excludes nobody."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _unusable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"{path}: expected a lock that this account can write, found: "
        f"{error.strerror or type(error).__name__}. Let medfl's account read and write the folder."
    )
