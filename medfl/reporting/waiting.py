"""`Waiting`: the round that a run waits for, as the server left it in ``waiting.json``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from medfl.reporting.records import Count, Record


class Waiting(Record):
    """A round under way.

    Attributes:
        round: Its number.
        since: When the sites were asked.
        deadline: When it goes on without those that are silent.
        asked: Names of the sites that were asked.
        answered: Names of those that have answered.
    """

    round: Count
    since: AwareDatetime
    deadline: AwareDatetime
    asked: tuple[str, ...]
    answered: tuple[str, ...]

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


def read_waiting(folder: Path) -> Waiting | None:
    """Whom a run waits for; None where the server says nothing.

    Args:
        folder: A run folder.
    """
    try:
        return Waiting.model_validate_json((folder / "waiting.json").read_bytes())
    except (OSError, ValidationError):
        return None  # taken away when the round ended
