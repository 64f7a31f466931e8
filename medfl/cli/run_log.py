"""The log of a run: what a terminal shows of it, line by line with the time, for later."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from rich.console import Console

if TYPE_CHECKING:
    from medfl.protocol.messages import Declaration, Scores
    from medfl.runs.attendance import Absence
    from medfl.runs.records import Round
    from medfl.runs.waiting import Waiting
    from medfl.server.progress import Progress


def log_console(path: Path) -> Console:
    """A console that appends to a log.

    Args:
        path: The log; made if missing, for its owner only.
    """
    path.touch(mode=0o600)
    return Console(file=cast("TextIO", _Stamped(path)), soft_wrap=True, no_color=True)


class _Stamped(io.TextIOBase):
    """Writes whole lines, each after the time in UTC.

    Args:
        path: The file, which others may write to as well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = ""

    def write(self, text: str) -> int:
        """Keep what is no whole line yet, write the rest."""
        *lines, self._begun = (self._begun + text).split("\n")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{now} {line}\n" for line in lines)
        return len(text)


class Together:
    """A `Progress` that several ones show.

    Args:
        shown: Told everything; may change while the run goes on.
    """

    def __init__(self, *shown: Progress) -> None:
        self.shown = list(shown)

    def phase(self, name: str) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.phase(name)

    def awaited(self, waiting: Waiting) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.awaited(waiting)

    def left_out(self, absent: Mapping[str, Absence]) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.left_out(absent)

    def planned(self, declarations: Sequence[Declaration], *, rounds: int) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.planned(declarations, rounds=rounds)

    def advanced(self, done: int, total: int) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.advanced(done, total)

    def stepped(self, site: str, done: int, total: int) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.stepped(site, done, total)

    def round_finished(self, record: Round) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.round_finished(record)

    def scored(self, round_number: int, scores: Sequence[Scores]) -> None:
        """Pass it on."""
        for progress in self.shown:
            progress.scored(round_number, scores)
