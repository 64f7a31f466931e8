"""Folders of a site that are named like runs."""

from __future__ import annotations

import re
from pathlib import Path

from medfl.errors import MessageError

# The server chooses a run's name, which must not choose a path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")


def folder_of_run(parent: Path, *, run: str) -> Path:
    """Where a site keeps something of one run.

    Args:
        parent: The folder of all runs.
        run: Identifier of the run.

    Raises:
        MessageError: If no file can be named like the run; medfl's own runs are named by letters,
            digits, '-' and '_'.
    """
    if not _NAME.fullmatch(run):
        raise MessageError(
            "Expected a run name of letters, digits, '-' and '_', found other characters.",
            code="message-run",
        )
    return parent / run
