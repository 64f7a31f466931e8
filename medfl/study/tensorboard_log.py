"""TensorBoard events of a run, written while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from medfl.protocol.messages import Declaration, Scores
from medfl.runs.attendance import Absence
from medfl.runs.records import Round
from medfl.runs.waiting import Waiting
from medfl.server.progress import Progress


class TensorBoardLog:
    """A `Progress` that also writes epsilon and Dice as TensorBoard scalars.

    Args:
        folder: Where the events go.
        watched: Told everything as well.
    """

    def __init__(self, folder: Path, *, watched: Progress) -> None:
        self._writer = SummaryWriter(str(folder))
        self._watched = watched

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def phase(self, name: str) -> None:
        """Pass it on."""
        self._watched.phase(name)

    def awaited(self, waiting: Waiting) -> None:
        """Pass it on."""
        self._watched.awaited(waiting)

    def left_out(self, absent: Mapping[str, Absence]) -> None:
        """Pass it on."""
        self._watched.left_out(absent)

    def planned(self, declarations: Sequence[Declaration], *, rounds: int) -> None:
        """Pass it on."""
        self._watched.planned(declarations, rounds=rounds)

    def advanced(self, done: int, total: int) -> None:
        """Pass it on."""
        self._watched.advanced(done, total)

    def stepped(self, site: str, done: int, total: int) -> None:
        """Pass it on."""
        self._watched.stepped(site, done, total)

    def round_finished(self, record: Round) -> None:
        """Write every site's epsilon, and the round's seconds."""
        for site, outcome in record.sites.items():
            self._writer.add_scalar(f"epsilon/{site}", outcome.epsilon, record.round)
        self._writer.add_scalar("seconds/round", record.seconds, record.round)
        self._watched.round_finished(record)

    def scored(self, round_number: int, scores: Sequence[Scores]) -> None:
        """Write the mean Dice of every region at every site."""
        for of_site in scores:
            for region in sorted({score.region for score in of_site.scores}):
                dice = fmean(s.dice for s in of_site.scores if s.region == region)
                self._writer.add_scalar(f"dice-{region}/{of_site.site}", dice, round_number)
        self._watched.scored(round_number, scores)
