"""`Progress`: what a run tells the person who watches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from medfl.protocol.messages import Declaration, Scores
from medfl.runs.attendance import Absence
from medfl.runs.records import Round
from medfl.runs.waiting import Waiting


class Progress(Protocol):
    """Called from the run's own thread; each call should return at once."""

    def phase(self, name: str) -> None:
        """A new part of the run begins."""

    def awaited(self, waiting: Waiting) -> None:
        """Sites are waited for before the first round; told again whenever one has answered."""

    def left_out(self, absent: Mapping[str, Absence]) -> None:
        """The run goes on without these sites, by name."""

    def planned(self, declarations: Sequence[Declaration], *, rounds: int) -> None:
        """The sites have agreed."""

    def advanced(self, done: int, total: int) -> None:
        """Work inside the current phase, outside rounds."""

    def stepped(self, site: str, done: int, total: int) -> None:
        """A site finished a noisy step of the current round."""

    def round_finished(self, record: Round) -> None:
        """A round was aggregated."""

    def scored(self, round_number: int, scores: Sequence[Scores]) -> None:
        """Held-out patients were scored."""


class Silent:
    """A `Progress` that shows nothing."""

    def phase(self, name: str) -> None:
        """Nothing."""

    def awaited(self, waiting: Waiting) -> None:
        """Nothing."""

    def left_out(self, absent: Mapping[str, Absence]) -> None:
        """Nothing."""

    def planned(self, declarations: Sequence[Declaration], *, rounds: int) -> None:
        """Nothing."""

    def advanced(self, done: int, total: int) -> None:
        """Nothing."""

    def stepped(self, site: str, done: int, total: int) -> None:
        """Nothing."""

    def round_finished(self, record: Round) -> None:
        """Nothing."""

    def scored(self, round_number: int, scores: Sequence[Scores]) -> None:
        """Nothing."""
