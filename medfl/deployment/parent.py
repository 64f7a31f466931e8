"""The parent of a process of a running site: whose secret it gets, and with whom it ends.

Its standard input is a line to the parent, which the system closes even if the parent is killed;
then the process ends too. So the secret is in no file, no argument and no environment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

SECRET_BYTES = 32


def read_secret() -> bytes:
    """Read the secret; from then on this process ends with its parent.

    Raises:
        EOFError: If the parent is gone already.
    """
    secret = os.read(sys.stdin.fileno(), SECRET_BYTES)
    if len(secret) < SECRET_BYTES:
        raise EOFError("Expected a secret from the parent process, found none.")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return secret


def as_file(secret: bytes) -> str:
    """A path from which this process can read a secret once, without a file on disk."""
    reader, writer = os.pipe()
    os.write(writer, secret)
    os.close(writer)
    return f"/dev/fd/{reader}"


def _end_with_parent() -> None:
    # Not by `sys.stdin`, whose lock would be held while Python ends.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
