"""How far a pretraining is, for who watches a run that another process works on.

It is in the run folder as ``pretraining.json``, and is replaced about once a second.
"""

from __future__ import annotations

import time
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import ReportError
from medfl.runs.files import PRETRAINING
from medfl.runs.records import Pretraining
from medfl.site.plain_training import Advance

WRITE_SECONDS = 1.0


def write_progress(folder: Path) -> Advance:
    """What to give `initial_weights` so that others can follow it.

    Args:
        folder: The run folder.
    """
    written = float("-inf")

    def advance(done: int, total: int) -> None:
        nonlocal written
        now = time.monotonic()
        if done < total and now - written < WRITE_SECONDS:
            return
        written = now
        content = PRETRAINING.text(Pretraining(done=done, total=total))
        write_atomically(folder / PRETRAINING.name, content.encode())

    return advance


def read_progress(folder: Path) -> tuple[int, int] | None:
    """Steps done and steps in total; None before the first step, or without a pretraining.

    Args:
        folder: The run folder.
    """
    try:
        found = PRETRAINING.read(folder)
    except ReportError:
        return None
    return found.done, found.total
