"""Whether a running site has a connection, for who only looks: a file in its state folder.

The process that has the connection knows; another one, as `medfl site status`, reads it here, and
believes it only while the site's lock is held, since a killed process takes nothing back.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime

from medfl.config.files import Section
from medfl.durable import write_atomically

CONNECTION = "connection.json"


class Connection(Section):
    """A connection, or that there is none.

    Attributes:
        connected: Whether there is one.
        since: Since when that is so.
    """

    connected: bool
    since: AwareDatetime

    @classmethod
    def now(cls, *, connected: bool) -> Connection:
        """What has changed now."""
        return cls(connected=connected, since=datetime.now(UTC).replace(microsecond=0))


def note_connection(state: Path, connection: Connection) -> None:
    """Write it down; who cannot, as on a full disk, takes part all the same."""
    with suppress(OSError):
        write_atomically(state / CONNECTION, connection.model_dump_json().encode(), mode=0o600)


def forget_connection(state: Path) -> None:
    """Take it back when the site ends."""
    with suppress(OSError):
        (state / CONNECTION).unlink(missing_ok=True)


def read_connection(state: Path) -> Connection | None:
    """What was written down last; None where there is nothing, or nothing whole."""
    try:
        return Connection.model_validate_json((state / CONNECTION).read_bytes())
    except (OSError, ValueError):
        return None
