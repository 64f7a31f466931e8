"""What a running site shows and tells: its metrics, and the events of its hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from medfl.config import SiteConfig
from medfl.deployment.hospital.connection import Connection
from medfl.deployment.hospital.status import SiteStatus, read_status
from medfl.deployment.monitoring.events import (
    Event,
    Happenings,
    certificate_expiring,
    disk_low,
)
from medfl.deployment.monitoring.metrics import Metric, Sample
from medfl.deployment.monitoring.watch import Watched
from medfl.errors import LedgerError
from medfl.site.audit_log import AUDIT_LOG, LogStore

LOST_SECONDS = 300.0
"""How long a connection may be away before somebody is told."""

_RUN = ("study", "run")
_WANTED = frozenset({"site-paused", "site-left"})
"""Refusals that somebody at the site has asked for."""

HEALTHY = Metric(name="medfl_site_healthy", help="1 if the page /health says ok.")
CONNECTED = Metric(name="medfl_site_connected", help="1 if there is a connection to the server.")
PAUSED = Metric(name="medfl_site_paused", help="1 if the site is paused.")
BUDGET = Metric(name="medfl_site_epsilon_budget", help="Lifetime budget of the patients.")
SPENT = Metric(name="medfl_site_epsilon_spent", help="Lifetime epsilon of all charges.")
LEFT = Metric(name="medfl_site_epsilon_left", help="Epsilon that is left of the budget.")
ROUNDS = Metric(
    name="medfl_site_rounds_total",
    help="Rounds that the ledger has paid for.",
    labels=_RUN,
    kind="counter",
)
LAST_ROUND = Metric(
    name="medfl_site_last_round_timestamp_seconds",
    help="Unix time at which a round was charged for the last time.",
    labels=_RUN,
)
CERTIFICATE = Metric(
    name="medfl_site_certificate_left_seconds",
    help="Seconds until the certificate of the coordinator's authority ends.",
)
DISK = Metric(
    name="medfl_site_disk_free_bytes", help="Bytes that are free where the state folder lies."
)
METRICS = (
    *(HEALTHY, CONNECTED, PAUSED, BUDGET, SPENT, LEFT, ROUNDS, LAST_ROUND, CERTIFICATE, DISK),
)


def samples(status: SiteStatus) -> Iterator[Sample]:
    """The numbers in a status."""
    yield Sample(metric=HEALTHY, value=status.health.status == "ok")
    yield Sample(metric=CONNECTED, value=status.connected)
    yield Sample(metric=PAUSED, value=status.paused)
    if status.ledger is not None:
        yield Sample(metric=BUDGET, value=status.ledger.epsilon_budget)
        yield Sample(metric=SPENT, value=status.ledger.epsilon_spent)
        yield Sample(metric=LEFT, value=status.ledger.epsilon_left)
        for run in status.ledger.runs:
            labels = (run.study, run.run)
            yield Sample(metric=ROUNDS, labels=labels, value=run.rounds)
            yield Sample(metric=LAST_ROUND, labels=labels, value=run.last_round.timestamp())
    if status.authority is not None:
        left = (status.authority.end - datetime.now(UTC)).total_seconds()
        yield Sample(metric=CERTIFICATE, value=left)
    if status.disk_free_bytes is not None:
        yield Sample(metric=DISK, value=status.disk_free_bytes)


def events(status: SiteStatus, since: datetime, *, site: SiteConfig) -> Happenings:
    """What is to be told of a site.

    Args:
        status: How it is now.
        since: What failed before is no news.
        site: Its file, with the limits.
    """
    end = status.authority.end if status.authority is not None else None
    return (
        _budget_low(status, part=site.monitoring.budget_left)
        + certificate_expiring(end, settings=site.monitoring, certificate="authority")
        + _connection_lost(status)
        + disk_low(status.disk_free_bytes, settings=site.monitoring)
        + _failed_rounds(site.state, since=since)
    )


def watched_site(
    site: SiteConfig, *, connection: Callable[[], Connection], authority: Path
) -> Watched[SiteStatus]:
    """A running site, for `monitored`.

    Args:
        site: Its file as it was when the site was started.
        connection: Says whether there is one.
        authority: Where the authority's certificate is.
    """
    return Watched(
        side="site",
        name=site.name,
        metrics=METRICS,
        read=lambda: read_status(site, connection=connection(), authority=authority),
        health=lambda status: status.health,
        samples=samples,
        events=lambda status, since: events(status, since, site=site),
    )


def _budget_low(status: SiteStatus, *, part: float) -> Happenings:
    ledger = status.ledger
    if ledger is None or ledger.epsilon_left >= part * ledger.epsilon_budget:
        return Happenings(events=())
    event = Event(
        code="budget-low",
        key=f"budget-low/{ledger.epsilon_budget:g}/{part:g}",
        details={
            "epsilon_spent": ledger.epsilon_spent,
            "epsilon_left": ledger.epsilon_left,
            "epsilon_budget": ledger.epsilon_budget,
        },
    )
    return Happenings(events=(event,))


def _connection_lost(status: SiteStatus) -> Happenings:
    key = "connection-lost"
    if status.connected:
        return Happenings(events=(), over=frozenset({key}))
    since = status.connection_since
    if since is None or datetime.now(UTC) - since < timedelta(seconds=LOST_SECONDS):
        return Happenings(events=())
    event = Event(code="connection-lost", key=key, details={"since": since.isoformat()})
    return Happenings(events=(event,))


def _failed_rounds(state: Path, *, since: datetime) -> Happenings:
    """Messages that this site refused, by the audit log; each code once a day.

    A server chooses how often it asks, and must not choose how often somebody here is woken.
    """
    try:
        with LogStore.open(state / AUDIT_LOG) as log:
            refusals = [entry for entry in log.entries if entry.kind == "refusal"]
    except (LedgerError, OSError):
        return Happenings(events=())  # not begun yet; `medfl check` judges a damaged one
    found = []
    for entry in refusals:
        code, message = str(entry.content["code"]), str(entry.content["message"])
        if code in _WANTED or datetime.fromisoformat(entry.time) < since:
            continue
        day = entry.time[:10]
        found.append(
            Event(
                code="round-failed",
                key=f"round-failed/{code}/{day}",
                details={"code": code, "message": message, "day": day},
            )
        )
    return Happenings(events=tuple(found))
