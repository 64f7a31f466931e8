"""`SiteStatus`: how a hospital's site is, off its files, for its own administrators.

It names no patient, and nothing in it depends on who was drawn: a charge is dated when its task
came, and how long a round was computed, which tells how many were drawn, is left out. See
`SitePolicy.answer_seconds`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from pydantic import AwareDatetime, Field

from medfl.config import SiteConfig
from medfl.deployment.hospital.connection import Connection, read_connection
from medfl.deployment.hospital.participation import LEFT, LOCK, PAUSED
from medfl.deployment.lock import is_held
from medfl.deployment.monitoring.events import days_left
from medfl.deployment.monitoring.report import Health, Part, Status, free_bytes
from medfl.errors import LedgerError
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.summary import LedgerSummary, summarised
from medfl.site.state_folder import LEDGER

AUTHORITY = "ca.crt"
"""Where `medfl site init --invite` puts the authority's certificate, in the state folder."""

Epsilon = Annotated[float, Field(ge=0)]
Reason = Literal["not-running", "not-connected", "ledger-unreadable", "certificate-expired", "left"]


class RunStatus(Part):
    """One run that the ledger has paid for.

    Attributes:
        study: Name of the study.
        run: Its id.
        rounds: Rounds that were charged.
        last_round: When the newest was charged.
    """

    study: str
    run: str
    rounds: Annotated[int, Field(ge=0)]
    last_round: AwareDatetime


class LedgerStatus(Part):
    """The state of the budget, as the ledger states it.

    Attributes:
        epsilon_spent: Lifetime epsilon of all charges.
        epsilon_left: What is left of the budget.
        epsilon_budget: Lifetime budget.
        delta: Delta at which epsilon is read.
        runs: In the order of their first charges.
    """

    epsilon_spent: Epsilon
    epsilon_left: Epsilon
    epsilon_budget: Epsilon
    delta: Annotated[float, Field(gt=0, lt=1)]
    runs: tuple[RunStatus, ...]


class AuthorityStatus(Part):
    """The certificate by which the server is known.

    Attributes:
        end: Until when it is valid.
        days_left: Whole days until then; negative after it.
    """

    end: AwareDatetime
    days_left: int


class SiteStatus(Status):
    """A hospital's site.

    Attributes:
        site: Its name.
        running: Whether `medfl site start` runs.
        connected: Whether it has a connection to the server.
        connection_since: Since when it has one, or has none; null where it does not run.
        paused: Whether it is paused.
        left: Whether it has left for good.
        ledger: The state of the budget; null where the ledger is missing or damaged.
        authority: The coordinator's authority; null where there is no such file.
    """

    site: str
    running: bool
    connected: bool
    connection_since: AwareDatetime | None
    paused: bool
    left: bool
    ledger: LedgerStatus | None
    authority: AuthorityStatus | None

    @property
    def last_round(self) -> datetime | None:
        """When a round was charged for the last time."""
        runs = self.ledger.runs if self.ledger is not None else ()
        return max((run.last_round for run in runs), default=None)


def read_status(
    site: SiteConfig, *, connection: Connection | None = None, authority: Path | None = None
) -> SiteStatus:
    """Look at a site.

    Args:
        site: The site.
        connection: What the running site itself knows; None for another process.
        authority: Where the authority's certificate is, if not in the state folder.
    """
    running = connection is not None or is_held(site.state / LOCK)
    if connection is None and running:
        connection = read_connection(site.state)
    ledger = _ledger(site.state)
    trusted = _authority(authority or site.state / AUTHORITY)
    left = (site.state / LEFT).exists()
    connected = connection is not None and connection.connected
    reasons: dict[Reason, bool] = {
        "left": left,
        "not-running": not running and not left,
        "not-connected": running and not connected,
        "ledger-unreadable": ledger is None,
        "certificate-expired": trusted is not None and trusted.days_left < 0,
    }
    return SiteStatus(
        health=Health.of(*(reason for reason, applies in reasons.items() if applies)),
        disk_free_bytes=free_bytes(site.state),
        site=site.name,
        running=running,
        connected=connected,
        connection_since=connection.since if connection is not None else None,
        paused=(site.state / PAUSED).exists(),
        left=left,
        ledger=ledger,
        authority=trusted,
    )


def read_ledger(state: Path) -> LedgerSummary | None:
    """What the ledger in a state folder says; None where it is missing, damaged or edited."""
    try:
        with LedgerStore.open(state / LEDGER) as store:
            return summarised(store.entries)
    except (LedgerError, OSError):
        return None


def _ledger(state: Path) -> LedgerStatus | None:
    found = read_ledger(state)
    if found is None:
        return None
    return LedgerStatus(
        epsilon_spent=found.epsilon,
        epsilon_left=found.left,
        epsilon_budget=found.budget,
        delta=found.delta,
        runs=tuple(
            RunStatus(study=run.study, run=run.run, rounds=run.rounds, last_round=run.last)
            for run in found.runs
        ),
    )


def _authority(path: Path) -> AuthorityStatus | None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    end = certificate.not_valid_after_utc.astimezone(UTC)
    return AuthorityStatus(end=end, days_left=days_left(end))
