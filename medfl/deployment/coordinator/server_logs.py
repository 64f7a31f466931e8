"""Logs of a server's processes, which would otherwise grow without bound.

Flower's processes hold their log open, and append to it. So a long one is copied and then emptied
in its place; a line that is written between the two steps is lost.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MAX_BYTES = 10_000_000
KEPT = 5
"""Earlier logs of each process; with the one in use at most 60 MB each, older lines are deleted."""


def rotate_logs(folder: Path) -> None:
    """Empty every log that has become too long; its content goes to ``NAME.log.1``, and so on.

    Args:
        folder: The server's folder for logs; may be missing.
    """
    for log in folder.glob("*.log"):
        if log.stat().st_size > MAX_BYTES:
            _rotate(log)


def _rotate(log: Path) -> None:
    for number in range(KEPT - 1, 0, -1):
        earlier = _numbered(log, number)
        if earlier.exists():
            earlier.replace(_numbered(log, number + 1))
    draft = log.with_name(f".{log.name}")
    shutil.copy(log, draft)  # with its permissions
    draft.replace(_numbered(log, 1))
    os.truncate(log, 0)


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
