"""How far a pretraining is, for who watches a run that another process works on.

It stands in the run folder as ``pretraining.json``, and is replaced about once a second.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from medfl.durable import write_atomically
from medfl.study.pretraining import Advance

FILE = "pretraining.json"
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
        content = json.dumps({"done": done, "total": total})
        write_atomically(folder / FILE, content.encode())

    return advance


def read_progress(folder: Path) -> tuple[int, int] | None:
    """Steps done and steps in total; None before the first step, or without a pretraining.

    Args:
        folder: The run folder.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return int(values["done"]), int(values["total"])
    except (OSError, KeyError, TypeError, ValueError):
        return None
