"""A child process of a running site: its secret comes from its parent, to which its log goes.

Its standard input is a line to the parent, which the system closes even if the parent is killed;
then the child ends too. So the secret stands in no file, no argument and no environment. Private
names of Flower's: the form of its log's lines.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from flwr.supercore.logger import update_console_handler

SECRET_BYTES = 32
OWN = "medfl"
"""How medfl's own lines begin, where those of others begin with a level."""


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


def log_to_parent() -> None:
    """Write plain lines to standard error: Flower's with their level, medfl's marked as its own."""
    update_console_handler(colored=False)
    logging.getLogger("flwr").propagate = False  # else each of its lines would stand there twice
    logging.basicConfig(
        level=logging.WARNING, format=f"{OWN}: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("medfl").setLevel(logging.INFO)


def _end_with_parent() -> None:
    # Not by `sys.stdin`, whose lock would be held while Python ends.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
