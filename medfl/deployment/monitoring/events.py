"""`Event`: something that the person on call should know, told once however often it is seen.

What was told is kept in a file, so that a restart tells nothing again. It is noted before the hook
runs: an event that is told twice would be worse than one whose hook failed, which the log names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from medfl.config.files import Section
from medfl.config.monitoring import Monitoring
from medfl.durable import write_atomically

Code = Literal[
    "budget-low",
    "certificate-expiring",
    "connection-lost",
    "disk-low",
    "round-failed",
    "run-failed",
    "site-absent",
    "site-late",
]

MOST_TOLD = 5000
"""How many are remembered, the newest."""

# Above the limit by this much the disk counts as mended, so that a value about it tells once.
_RECOVERED = 1.25

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, or has begun to be so.

    Attributes:
        code: What.
        key: What makes it this one and no other.
        details: More of it: codes and numbers, names of sites, studies and runs, and no path.
    """

    code: Code
    key: str
    details: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Happenings:
    """What is to be told at one moment.

    Attributes:
        events: What is so now.
        over: Keys of what is not so any more, and would be news if it came back.
    """

    events: tuple[Event, ...]
    over: frozenset[str] = frozenset()

    def __add__(self, other: Happenings) -> Happenings:
        """Both."""
        return Happenings(events=self.events + other.events, over=self.over | other.over)


def disk_low(free: int | None, *, settings: Monitoring) -> Happenings:
    """Whether too little of the disk is free.

    Args:
        free: Bytes; None where nobody can tell.
        settings: The limit.
    """
    limit = settings.disk_gigabytes * 1e9
    if free is not None and free < limit:
        event = Event(code="disk-low", key="disk-low", details={"free_bytes": free})
        return Happenings(events=(event,))
    mended = free is not None and free > _RECOVERED * limit
    return Happenings(events=(), over=frozenset({"disk-low"} if mended else ()))


def certificate_expiring(
    end: datetime | None, *, settings: Monitoring, certificate: str
) -> Happenings:
    """Whether a certificate ends soon, or has ended.

    Args:
        end: When; None where there is none.
        settings: The limit.
        certificate: Whose: ``server`` or ``authority``.
    """
    if end is None or end - datetime.now(UTC) >= timedelta(days=settings.certificate_days):
        return Happenings(events=())
    event = Event(
        code="certificate-expiring",
        key=f"certificate-expiring/{certificate}/{end.isoformat()}",
        details={
            "certificate": certificate,
            "end": end.isoformat(),
            "days_left": days_left(end),
        },
    )
    return Happenings(events=(event,))


def days_left(end: datetime) -> int:
    """Whole days until a moment; negative after it."""
    return (end - datetime.now(UTC)) // timedelta(days=1)


class _Kept(Section):
    """The file.

    Attributes:
        began: When somebody began to look: what failed before is no news.
        told: Keys, the oldest first.
    """

    began: AwareDatetime
    told: tuple[str, ...] = ()


class Told:
    """What was told already.

    Args:
        path: Its file (mode 0600), made at the first look.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = self._read()
        self._write()

    @property
    def began(self) -> datetime:
        """When somebody began to look, to the second."""
        return self._kept.began

    def news(self, now: Happenings) -> list[Event]:
        """What of these was not told yet; what is over is news from now on."""
        self._keep(tuple(key for key in self._kept.told if key not in now.over))
        return list(_first_of_each(now.events, known=self._kept.told))

    def note(self, event: Event) -> None:
        """Count an event as told."""
        self._keep((*self._kept.told, event.key)[-MOST_TOLD:])

    def _keep(self, told: tuple[str, ...]) -> None:
        if told != self._kept.told:
            self._kept = self._kept.model_copy(update={"told": told})
            self._write()

    def _read(self) -> _Kept:
        try:
            return _Kept.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValidationError):
            logger.warning("%s was damaged and has been started afresh.", self._path)
        return _Kept(began=datetime.now(UTC).replace(microsecond=0))

    def _write(self) -> None:
        content = json.dumps(self._kept.model_dump(mode="json"), indent=1).encode()
        try:
            write_atomically(self._path, content, mode=0o600)
        except OSError as error:  # a full disk has to be told all the same
            logger.warning("%s could not be written (%s).", self._path, error.strerror)


def _first_of_each(events: Iterable[Event], *, known: Collection[str]) -> Iterable[Event]:
    seen = set(known)
    for event in events:
        if event.key not in seen:
            seen.add(event.key)
            yield event
