"""`Waiting`: the sites that a run waits for, as the server left it in ``waiting.json``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import AwareDatetime

from medfl.runs.records import Count, Finite, Record

STARTING = "the server's process starts"
CONNECTING = "the sites connect"
AGREEING = "the sites agree"
"""Phases before the first round of a start."""


class Waiting(Record):
    """A round under way, or what comes before the first one.

    Attributes:
        round: Its number; that of the next round, before it begins.
        since: When the sites were asked.
        deadline: When it goes on without those that are silent; None where it never does.
        asked: Names of the sites that were asked.
        answered: Names of those that have answered, or are connected.
        phase: In words: before a round, or of a secure sum; empty where a round has one phase.
        others: Seconds until the deadline that are there because sites may be at work for other
            studies first.
    """

    round: Count
    since: AwareDatetime
    deadline: AwareDatetime | None
    asked: tuple[str, ...]
    answered: tuple[str, ...]
    phase: str = ""
    others: Finite = 0.0

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
        return self.deadline is not None and datetime.now(UTC) > self.deadline

    @property
    def before_round(self) -> bool:
        """Whether the sites are only asked to take part."""
        return self.phase in (STARTING, CONNECTING, AGREEING)

    @classmethod
    def begin(
        cls,
        number: int,
        *,
        asked: Iterable[str],
        timeout: float | None,
        phase: str = "",
        others: float = 0.0,
    ) -> Self:
        """A round in which sites were asked now, and none has answered.

        Args:
            number: 1 for the first round.
            asked: Names of the sites.
            timeout: Seconds until the run goes on without those that are silent; None if it waits.
            phase: Before a round, or of a secure sum.
            others: How many of these seconds are for other studies.
        """
        since = datetime.now(UTC)
        return cls(
            round=number,
            since=since,
            deadline=None if timeout is None else since + timedelta(seconds=timeout),
            asked=tuple(sorted(asked)),
            answered=(),
            phase=phase,
            others=others,
        )

    def heard(self, site: str) -> Self:
        """The same round after an answer, whatever it says."""
        return self.hearing((*self.answered, site))

    def hearing(self, sites: Iterable[str]) -> Self:
        """The same with exactly these answers."""
        return self.model_copy(update={"answered": tuple(sorted(sites))})
