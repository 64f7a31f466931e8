"""Whether a hospital takes part, has paused, or has left for good: files in its state folder.

They outlive a restart, and every message is answered only after a look at them. A pause stops the
resending of paid updates too: who pauses wants that nothing goes out, and the same bytes go out
free of charge after `resume`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from medfl.durable import sync_folder, write_atomically
from medfl.errors import ConfigError, FederationError

PAUSED = "paused.json"
LEFT = "left.json"
LOCK = "site.lock"
"""Held by a running site."""


@dataclass(frozen=True, kw_only=True)
class Departure:
    """That a site has left for good.

    Attributes:
        date: When, as ISO 8601 text in UTC.
        reason: Why, in the words of its administrator.
    """

    date: str
    reason: str

    @classmethod
    def read(cls, state: Path) -> Self | None:
        """The departure that is written in a state folder, or None.

        Raises:
            ConfigError: If the file is damaged.
        """
        path = state / LEFT
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError):
            raise ConfigError(f"{path}: expected why a site left, found a damaged file.") from None

    def write(self, state: Path) -> None:
        """Write it into a state folder, durably."""
        write_atomically(state / LEFT, (json.dumps(asdict(self)) + "\n").encode(), mode=0o600)


def now() -> str:
    """The time as these files write it: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def pause(state: Path) -> None:
    """Refuse every message from now on; a round under way, which is paid for, is finished."""
    write_atomically(state / PAUSED, (json.dumps({"since": now()}) + "\n").encode(), mode=0o600)


def resume(state: Path) -> None:
    """Take part again; nothing happens at a site that is not paused."""
    (state / PAUSED).unlink(missing_ok=True)
    sync_folder(state)


def require_taking_part(state: Path) -> None:
    """Refuse a message while the site is paused or has left; nothing is charged for it.

    Raises:
        FederationError: With the code ``site-paused`` or ``site-left``.
    """
    if (state / LEFT).exists():
        raise FederationError("This site has left.", code="site-left")
    if (state / PAUSED).exists():
        raise FederationError("This site is paused.", code="site-paused")


def require_not_left(state: Path) -> None:
    """Refuse to bring back a site that has left for good.

    Raises:
        ConfigError: If it has.
    """
    departure = Departure.read(state)
    if departure is not None:
        raise ConfigError(
            f"{state}: this site left for good on "
            f"{departure.date} ({departure.reason}). Its ledger stays; a new site needs a folder, "
            "keys and an admission of its own."
        )
