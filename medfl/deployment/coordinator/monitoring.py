"""What a running server shows and tells: its metrics, and the events of its hook."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from medfl.config.monitoring import Monitoring
from medfl.deployment.coordinator.report import health_of
from medfl.deployment.coordinator.run_book import RunRecord
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.coordinator.status import ServerStatus, read_status
from medfl.deployment.monitoring.events import (
    Event,
    Happenings,
    certificate_expiring,
    disk_low,
)
from medfl.deployment.monitoring.metrics import Metric, Sample
from medfl.deployment.monitoring.report import free_bytes
from medfl.deployment.monitoring.watch import Watched
from medfl.errors import ReportError
from medfl.runs.live_run import LiveRun, LiveSite, read_live

UNDER_WAY, INTERRUPTED = "under-way", "interrupted"
STATES = (UNDER_WAY, "completed", "stopped", "failed", INTERRUPTED)

_RUN = ("study", "run")
_SITE = (*_RUN, "site")

HEALTHY = Metric(name="medfl_server_healthy", help="1 if the page /health says ok.")
ADMITTED = Metric(name="medfl_server_sites_admitted", help="Hospitals that may take part.")
CONNECTED = Metric(
    name="medfl_server_site_connected",
    help="1 if the admitted hospital is connected; missing where nobody knows.",
    labels=("site",),
)
RUNS = Metric(
    name="medfl_server_runs",
    help=f"Runs by how they are or ended: {', '.join(STATES)}.",
    labels=("state",),
)
PLANNED = Metric(
    name="medfl_server_rounds_planned", help="Rounds that the study plans.", labels=_RUN
)
ROUNDS = Metric(
    name="medfl_server_rounds_total", help="Finished rounds.", labels=_RUN, kind="counter"
)
LAST_ROUND = Metric(
    name="medfl_server_last_round_timestamp_seconds",
    help="Unix time at which a round ended for the last time.",
    labels=_RUN,
)
DURATION = Metric(
    name="medfl_server_last_round_duration_seconds",
    help="Seconds that the last finished round took.",
    labels=_RUN,
)
LATE = Metric(
    name="medfl_server_late_sites",
    help="Sites that keep a late round waiting; 0 where nobody follows the run.",
    labels=_RUN,
)
ABSENT = Metric(
    name="medfl_server_absent_sites",
    help="Admitted sites without which the run was started, or went on.",
    labels=_RUN,
)
MISSED = Metric(
    name="medfl_server_site_rounds_missed_total",
    help="Rounds without an admitted update of the site.",
    labels=_SITE,
    kind="counter",
)
SPENT = Metric(
    name="medfl_server_site_epsilon_spent",
    help="Epsilon of the site in this run, counted from what it declares.",
    labels=_SITE,
)
LEFT = Metric(
    name="medfl_server_site_epsilon_left",
    help="Most that can be left of the site's budget; other studies are known at the site only.",
    labels=_SITE,
)
CERTIFICATE = Metric(
    name="medfl_server_certificate_left_seconds",
    help="Seconds until the server's certificate ends.",
)
DISK = Metric(
    name="medfl_server_disk_free_bytes",
    help="Bytes that are free where the server's folder, or the run folder, lies.",
)
METRICS = (
    *(HEALTHY, ADMITTED, CONNECTED, RUNS, PLANNED, ROUNDS, LAST_ROUND, DURATION, LATE, ABSENT),
    *(MISSED, SPENT, LEFT, CERTIFICATE, DISK),
)


@dataclass(frozen=True, kw_only=True)
class FollowedRun:
    """A run under way, or the last one.

    Attributes:
        record: Its record.
        live: What is on disk of it.
        under_way: Whether somebody follows it now.
    """

    record: RunRecord
    live: LiveRun
    under_way: bool

    @property
    def labels(self) -> tuple[str, str]:
        """Study and id."""
        return self.live.study, self.record.run

    @property
    def late_sites(self) -> tuple[str, ...]:
        """Who keeps a late round waiting."""
        return self.live.late_sites if self.under_way else ()


@dataclass(frozen=True, kw_only=True)
class ServerSight:
    """A server at one moment.

    Attributes:
        status: The server and its hospitals.
        states: Each run's record, with how it is or ended.
        runs: Those that are under way, else the last.
        disk_free_bytes: The least that is free of the disks that it writes to.
    """

    status: ServerStatus
    states: tuple[tuple[RunRecord, str], ...]
    runs: tuple[FollowedRun, ...]
    disk_free_bytes: int | None


def look_at(folder: ServerFolder) -> ServerSight:
    """Look at a server.

    Raises:
        ConfigError: If its files are damaged.
    """
    book = folder.book
    states = tuple(
        (record, UNDER_WAY if book.is_under_way(record) else record.outcome or INTERRUPTED)
        for record in book.records()
    )
    shown = [each for each in states if each[1] == UNDER_WAY] or states[-1:]
    runs = []
    for record, state in shown:
        with suppress(ReportError):  # it has only just begun, or its folder is gone
            live = read_live(record.out)
            runs.append(FollowedRun(record=record, live=live, under_way=state == UNDER_WAY))
    return ServerSight(
        status=read_status(folder),
        states=states,
        runs=tuple(runs),
        disk_free_bytes=free_bytes(folder.path, *(run.record.out for run in runs)),
    )


def samples(sight: ServerSight) -> Iterator[Sample]:
    """The numbers in a sight."""
    status = sight.status
    admitted = [site for site in status.sites if site.state == "admitted"]
    yield Sample(metric=HEALTHY, value=health_of(status).status == "ok")
    yield Sample(metric=ADMITTED, value=len(admitted))
    for site in admitted:
        if site.connected is not None:
            yield Sample(metric=CONNECTED, labels=(site.name,), value=site.connected)
    count: Mapping[str, int] = Counter(state for _, state in sight.states)
    for state in STATES:
        yield Sample(metric=RUNS, labels=(state,), value=count.get(state, 0))
    for run in sight.runs:
        yield from _run_samples(run)
    yield Sample(metric=CERTIFICATE, value=status.certificate.left.total_seconds())
    if sight.disk_free_bytes is not None:
        yield Sample(metric=DISK, value=sight.disk_free_bytes)


def _run_samples(run: FollowedRun) -> Iterator[Sample]:
    live, labels = run.live, run.labels
    yield Sample(metric=PLANNED, labels=labels, value=live.rounds)
    yield Sample(metric=ROUNDS, labels=labels, value=live.done)
    yield Sample(metric=LATE, labels=labels, value=len(run.late_sites))
    yield Sample(metric=ABSENT, labels=labels, value=len(live.absent))
    if live.seconds:
        yield Sample(metric=DURATION, labels=labels, value=live.seconds[-1])
        yield Sample(metric=LAST_ROUND, labels=labels, value=time.time() - live.seconds_since)
    for site in live.sites:
        named = (*labels, site.name)
        yield Sample(metric=MISSED, labels=named, value=site.missed)
        yield Sample(metric=SPENT, labels=named, value=site.epsilon)
        yield Sample(metric=LEFT, labels=named, value=_left(site))


def events(sight: ServerSight, since: datetime, *, settings: Monitoring) -> Happenings:
    """What is to be told of a server.

    Args:
        sight: How it is now.
        since: What failed before is no news.
        settings: The limits.
    """
    found = [*_failed_runs(sight, since=since)]
    for run in sight.runs:
        if run.under_way:
            found += [*_late_or_absent(run), *_failed_rounds(run), *_low_budgets(run, settings)]
    end = sight.status.certificate.end
    return (
        Happenings(events=tuple(found))
        + certificate_expiring(end, settings=settings, certificate="server")
        + disk_low(sight.disk_free_bytes, settings=settings)
    )


def watched_server(folder: ServerFolder, *, settings: Monitoring) -> Watched[ServerSight]:
    """A running server, for `monitored`.

    Args:
        folder: Its files.
        settings: The limits.
    """
    return Watched(
        side="server",
        name=folder.federation,
        metrics=METRICS,
        read=lambda: look_at(folder),
        health=lambda sight: health_of(sight.status),
        samples=samples,
        events=lambda sight, since: events(sight, since, settings=settings),
    )


def _left(site: LiveSite) -> float:
    return max(0.0, site.budget - site.epsilon)


def _failed_runs(sight: ServerSight, *, since: datetime) -> Iterator[Event]:
    for record, state in sight.states:
        when = record.ended or record.began
        if state in ("failed", INTERRUPTED) and when >= since:
            yield Event(
                code="run-failed",
                key=f"run-failed/{record.run}/{when.isoformat()}",
                details={"study": record.study, "run": record.run, "state": state},
            )


def _late_or_absent(run: FollowedRun) -> Iterator[Event]:
    waiting = run.live.waiting
    for name in run.late_sites:
        number = waiting.round if waiting is not None else run.live.done + 1
        yield Event(
            code="site-late",
            key=f"site-late/{run.record.run}/{number}/{name}",
            details={**_named(run), "site": name, "round": number},
        )
    if waiting is not None and waiting.before_round:
        return  # who is asked again has another chance
    for name, absence in run.live.absent.items():
        yield Event(
            code="site-absent",
            key=f"site-absent/{run.record.run}/{run.record.began.isoformat()}/{name}",
            details={**_named(run), "site": name, "code": absence.code},
        )


def _failed_rounds(run: FollowedRun) -> Iterator[Event]:
    """Rounds without a site's update: each kind of failure of a site once a start."""
    for site in run.live.sites:
        if site.outcome != "admitted":
            began = run.record.began.isoformat()
            yield Event(
                code="round-failed",
                key=f"round-failed/{run.record.run}/{began}/{site.name}/{site.outcome}/{site.code}",
                details={
                    **_named(run),
                    "site": site.name,
                    "round": run.live.done,
                    "outcome": site.outcome,
                    "code": site.code,
                },
            )


def _low_budgets(run: FollowedRun, settings: Monitoring) -> Iterator[Event]:
    for site in run.live.sites:
        if _left(site) < settings.budget_left * site.budget:
            yield Event(
                code="budget-low",
                key=f"budget-low/{run.record.run}/{site.name}/{settings.budget_left:g}",
                details={
                    **_named(run),
                    "site": site.name,
                    "epsilon_spent": site.epsilon,
                    "epsilon_left": _left(site),
                    "epsilon_budget": site.budget,
                },
            )


def _named(run: FollowedRun) -> dict[str, str | int | float]:
    return {"study": run.live.study, "run": run.record.run}
