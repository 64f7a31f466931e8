"""`Waiting`: the round that a run waits for, as the server left it in ``waiting.json``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import AwareDatetime

from medfl.runs.records import Count, Record


class Waiting(Record):
    """A round under way.

    Attributes:
        round: Its number.
        since: When the sites were asked.
        deadline: When it goes on without those that are silent.
        asked: Names of the sites that were asked.
        answered: Names of those that have answered.
        phase: Of a secure sum, in words; empty where a round has one phase.
    """

    round: Count
    since: AwareDatetime
    deadline: AwareDatetime
    asked: tuple[str, ...]
    answered: tuple[str, ...]
    phase: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Who was asked and has not answered."""
        return tuple(name for name in self.asked if name not in self.answered)

    @property
    def seconds(self) -> float:
        """How long it waits already."""
        return max(0.0, (datetime.now(UTC) - self.since).total_seconds())

    @property
    def overdue(self) -> bool:
        """Whether the deadline is gone, so that nobody may be waiting any more."""
        return datetime.now(UTC) > self.deadline

    @classmethod
    def begin(cls, number: int, *, asked: Iterable[str], timeout: float, phase: str = "") -> Self:
        """A round in which sites were asked now, and none has answered.

        Args:
            number: 1 for the first round.
            asked: Names of the sites.
            timeout: Seconds until the round goes on without those that are silent.
            phase: Of a secure sum.
        """
        since = datetime.now(UTC)
        return cls(
            round=number,
            since=since,
            deadline=since + timedelta(seconds=timeout),
            asked=tuple(sorted(asked)),
            answered=(),
            phase=phase,
        )

    def heard(self, site: str) -> Self:
        """The same round after an answer, whatever it says."""
        return self.model_copy(update={"answered": tuple(sorted((*self.answered, site)))})
