"""Progress of a command: bars on a terminal, and a line every so often anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

LINE_SECONDS = 10.0
"""Least time between two lines of one part."""

Advance = Callable[[str, int, int], None]
"""Told the part of the work, what is done of it, and all of it."""


@contextmanager
def shown_advance(*, transient: bool = False) -> Iterator[Advance]:
    """Show how far a command is, on standard error.

    Args:
        transient: Whether bars go when the command is done.

    Yields:
        What to call.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    with Progress(console=console, transient=transient) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=total)
            bars.update(tasks[part], completed=done, total=total)

        yield advance


def _lines(console: Console) -> Advance:
    """A line when a part begins, when it ends, and now and then between."""
    shown: dict[str, tuple[float, int]] = {}

    def advance(part: str, done: int, total: int) -> None:
        now = time.monotonic()
        last, told = shown.get(part, (float("-inf"), -1))
        if (done == total and told != done) or now - last >= LINE_SECONDS:
            shown[part] = (now, done)
            console.print(f"{part}: {done}/{total}", highlight=False, markup=False, soft_wrap=True)

    return advance
