"""`ServerReport`: a server, its hospitals and its run at one moment, for programs.

Epsilon is what the server counts of a run from what the sites declare. Files and folders in it are
the coordinator's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, WithJsonSchema

from medfl.deployment.coordinator.roster import State
from medfl.deployment.coordinator.status import ServerStatus, SiteStatus
from medfl.deployment.monitoring.report import Health, Part, Status
from medfl.runs.live_run import LiveRun, LiveSite
from medfl.runs.waiting import Waiting

LAST_ROUNDS = 5
"""How many of them are timed in a status."""

Count = Annotated[int, Field(ge=0)]
Loss = Annotated[
    float,
    Field(ge=0),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"const": "inf"}]}),
]
"""An epsilon; JSON has no infinity, which is written as the text ``inf``."""


class ServerPart(Part):
    """The server.

    Attributes:
        federation: Name of the federation.
        address: Where hospitals reach the server.
        running: Whether it answers on this machine.
        certificate_end: Until when its certificate is valid.
        certificate_days_left: Whole days until then; negative after it.
    """

    federation: str
    address: str
    running: bool
    certificate_end: AwareDatetime
    certificate_days_left: int


class HospitalPart(Part):
    """One hospital on the server's list.

    Attributes:
        name: Its name.
        state: What it is.
        since: Since when.
        reason: Why it was revoked; empty if it was not.
        fingerprint: Of its keys; empty before it has any.
        connected: Whether its node is there; null where nobody knows.
        connection_since: Since when it is there, or away; null where nobody knows.
    """

    name: str
    state: State
    since: AwareDatetime
    reason: str
    fingerprint: str
    connected: bool | None
    connection_since: AwareDatetime | None


class SitePart(Part):
    """One site of a run, after the last finished round.

    Attributes:
        name: Its name.
        epsilon: Spent in this run.
        budget: Lifetime budget of its patients, of which other studies may have spent a part.
        outcome: Of the last round: ``admitted``, ``refused``, ``rejected``, ``silent``.
        code: Why, if not admitted.
        missed: Rounds without an admitted update.
    """

    name: str
    epsilon: Loss
    budget: Loss
    outcome: str
    code: str
    missed: Count


class AbsencePart(Part):
    """Why a site takes no part.

    Attributes:
        code: The fixed word.
        reason: The same for people.
    """

    code: str
    reason: str


class RunPart(Part):
    """A run, as far as it is on disk.

    Attributes:
        study: Name of the study.
        rounds: Planned rounds.
        done: Finished rounds.
        finished: Whether the run came to its end.
        under_way: Whether `medfl server run` follows it now.
        seconds_of_last_rounds: The newest at the end.
        pretraining: Steps done and in total, while the first model is made; null at other times.
        late: Whether the round under way takes far longer than rounds did so far.
        sites: By name.
        waiting: Who is waited for; null between two rounds, and where nobody follows the run.
        late_sites: Who keeps a late round waiting.
        absent: Who takes no part since the run was started, or went on, for the last time.
    """

    study: str
    rounds: Count
    done: Count
    finished: bool
    under_way: bool
    seconds_of_last_rounds: tuple[float, ...]
    pretraining: tuple[int, int] | None
    late: bool
    sites: tuple[SitePart, ...]
    waiting: Waiting | None
    late_sites: tuple[str, ...]
    absent: Mapping[str, AbsencePart]


class ServerReport(Status):
    """A server at one moment.

    Attributes:
        server: The server.
        sites: All hospitals by name.
        run_dir: Folder of the run; null where there is none.
        state: How the run is, or how it ended, in words; empty where nobody knows.
        problem: Why the run cannot be shown; empty if it can.
        run: The run under way, or the last; null where there is none yet.
    """

    server: ServerPart
    sites: tuple[HospitalPart, ...]
    run_dir: str | None
    state: str
    problem: str
    run: RunPart | None


def server_report(
    server: ServerStatus,
    *,
    run: LiveRun | None,
    run_dir: Path | None,
    under_way: bool,
    state: str,
    problem: str,
    disk_free_bytes: int | None,
) -> ServerReport:
    """A moment.

    Args:
        server: The server and its hospitals.
        run: The run; None where there is none yet.
        run_dir: Its folder; None where none is known.
        under_way: Whether `medfl server run` follows it now.
        state: How it is, or how it ended, in words; empty where nobody knows.
        problem: Why the run cannot be shown; empty if it can.
        disk_free_bytes: Free where the server's folder lies.
    """
    return ServerReport(
        health=health_of(server),
        disk_free_bytes=disk_free_bytes,
        server=ServerPart(
            federation=server.federation,
            address=server.address,
            running=server.running,
            certificate_end=server.certificate.end,
            certificate_days_left=server.certificate.days_left,
        ),
        sites=tuple(map(_hospital, server.sites)),
        run_dir=str(run_dir) if run_dir is not None else None,
        state=state,
        problem=problem,
        run=_run(run, under_way=under_way) if run is not None else None,
    )


def health_of(server: ServerStatus) -> Health:
    """Whether a server can serve: ``not-running``, ``certificate-expired``."""
    reasons = {
        "not-running": not server.running,
        "certificate-expired": server.certificate.left.total_seconds() <= 0,
    }
    return Health.of(*(reason for reason, applies in reasons.items() if applies))


def _hospital(site: SiteStatus) -> HospitalPart:
    return HospitalPart(
        name=site.name,
        state=site.state,
        since=site.since,
        reason=site.reason,
        fingerprint=site.fingerprint,
        connected=site.connected,
        connection_since=site.connection_since,
    )


def _run(run: LiveRun, *, under_way: bool) -> RunPart:
    return RunPart(
        study=run.study,
        rounds=run.rounds,
        done=run.done,
        finished=run.finished,
        under_way=under_way,
        seconds_of_last_rounds=run.seconds[-LAST_ROUNDS:],
        pretraining=run.pretraining,
        late=run.late and under_way,
        sites=tuple(map(_site, run.sites)),
        waiting=run.waiting if under_way else None,
        late_sites=run.late_sites if under_way else (),
        absent={
            name: AbsencePart(code=absence.code, reason=absence.reason)
            for name, absence in run.absent.items()
        },
    )


def _site(site: LiveSite) -> SitePart:
    return SitePart(
        name=site.name,
        epsilon=site.epsilon,
        budget=site.budget,
        outcome=site.outcome,
        code=site.code,
        missed=site.missed,
    )
