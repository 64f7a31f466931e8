"""`View`: a server, its hospitals and its run at one moment, as tables, as a line, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from medfl.errors import ReportError
from medfl.runs.live_run import LiveRun, LiveSite, epsilon_text, read_live
from medfl.runs.waiting import CONNECTING, STARTING, Waiting

if TYPE_CHECKING:
    from medfl.deployment.coordinator.status import ServerStatus, SiteStatus

_LAST_ROUNDS = 5
_STYLES = {"admitted": "", "invited": "dim", "revoked": "dim"}
_ALARM = "bold red"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown at one moment.

    Attributes:
        server: The server and its hospitals.
        run: The run; None where there is none yet.
        run_dir: Its folder; None where none is known.
        under_way: Whether `medfl server run` follows it now.
        state: How it ended, in words; empty where nobody knows.
        problem: Why the run cannot be shown; empty if it can, or if there is none.
        disk_free_bytes: Free where the server's folder lies; None where nobody can tell.
    """

    server: ServerStatus
    run: LiveRun | None
    run_dir: Path | None
    under_way: bool
    state: str
    problem: str
    disk_free_bytes: int | None


def view(
    server: ServerStatus,
    *,
    run_dir: Path | None,
    under_way: bool,
    state: str = "",
    disk_free_bytes: int | None = None,
) -> View:
    """A moment.

    Args:
        server: The server and its hospitals.
        run_dir: The run folder to read; None where none is known.
        under_way: Whether `medfl server run` follows it now.
        state: How it is, or how it ended, in words; empty where nobody knows.
        disk_free_bytes: Free where the server's folder lies; None where nobody can tell.
    """
    run, problem = None, ""
    if run_dir is not None:
        try:
            run = read_live(run_dir)
        except ReportError as error:
            problem = str(error)
    going_on = under_way and run is not None and not run.finished
    return View(
        server=server,
        run=run,
        run_dir=run_dir,
        under_way=going_on,
        state=state,
        problem=problem,
        disk_free_bytes=disk_free_bytes,
    )


def report(moment: View) -> dict[str, Any]:
    """A moment as JSON types."""
    from medfl.deployment.coordinator.report import server_report

    return server_report(
        moment.server,
        run=moment.run,
        run_dir=moment.run_dir,
        under_way=moment.under_way,
        state=moment.state,
        problem=moment.problem,
        disk_free_bytes=moment.disk_free_bytes,
    ).model_dump(mode="json")


def one_line(moment: View) -> str:
    """A moment in one line, the same as long as nothing happens."""
    server, run = moment.server, moment.run
    admitted = [site for site in server.sites if site.state == "admitted"]
    there = sorted(site.name for site in admitted if site.connected)
    parts = [
        "server answers" if server.running else "server does not answer",
        f"connected {len(there)} of {len(admitted)}: {', '.join(there) or 'nobody'}",
    ]
    if run is not None:
        parts.append(f"{run.study}: {_progress(moment, run)}")
        if run.waiting is not None and moment.under_way:
            missing = ", ".join(run.waiting.missing) or "nobody"
            parts.append(f"waiting for {missing}{_phase(run.waiting)}")
        if run.absent:
            told = ", ".join(f"{name} ({at.reason})" for name, at in run.absent.items())
            parts.append(f"without {told}")
        if run.late_sites and moment.under_way:
            parts.append(f"late: {', '.join(run.late_sites)}")
        if run.sites:
            spent = (
                f"{site.name} {epsilon_text(site.epsilon)}/{site.budget:g}" for site in run.sites
            )
            parts.append("epsilon " + " ".join(spent))
    elif moment.problem:
        parts.append("run not readable")
    return "; ".join(parts)


def render(moment: View) -> RenderableType:
    """A moment as tables."""
    parts: list[RenderableType] = [*_server_lines(moment.server), _sites_table(moment.server)]
    if moment.run is not None:
        parts += [*_run_lines(moment, moment.run), _run_table(moment, moment.run)]
    else:
        parts.append(Text(moment.problem or "No run yet: `medfl server run` begins one."))
    return Group(*parts)


def _server_lines(server: ServerStatus) -> list[Text]:
    state = "answers" if server.running else "does not answer: `medfl server start` starts it"
    lines = [Text(f"{server.federation} at {server.address}: the server {state}")]
    certificate = server.certificate
    days = max(certificate.days_left, 0)
    text = f"Certificate: {days} days left, until {certificate.end:%Y-%m-%d}"
    if certificate.expires_soon:
        lines.append(Text(f"{text}. Renew it with `medfl server renew`.", style=_ALARM))
    else:
        lines.append(Text(text))
    return lines


def _sites_table(server: ServerStatus) -> Table:
    table = _table("site", "state", "connected", "fingerprint of its keys")
    for site in server.sites:
        cells = (
            site.name,
            f"{site.state} {site.since:%Y-%m-%d}" + (f": {site.reason}" if site.reason else ""),
            _connected(site, server),
            site.fingerprint or "none yet",
        )
        table.add_row(*map(escape, cells), style=_STYLES[site.state])
    if not server.sites:
        table.add_row("nobody yet", "", "", "")
    return table


def _connected(site: SiteStatus, server: ServerStatus) -> str:
    if site.state != "admitted":
        return ""
    if not server.running or site.connected is None:
        return "unknown"
    since = f", {_ago(site.connection_since)}" if site.connection_since else ""
    return ("yes" if site.connected else "no" if since else "never") + since


def _run_lines(moment: View, run: LiveRun) -> list[Text]:
    lines = [Text(f"Study {run.study} in {moment.run_dir}: {_progress(moment, run)}")]
    if run.seconds:
        seconds = "  ".join(f"{value:.1f}" for value in run.seconds[-_LAST_ROUNDS:])
        lines.append(Text(f"Seconds of the last rounds: {seconds}"))
    if not moment.under_way:
        return lines
    waiting = run.waiting
    if waiting is not None:
        when = "Before round" if waiting.before_round else "Round"
        lines.append(Text(f"{when} {waiting.round}{_phase(waiting)}: {_since(waiting)}"))
    if run.late:
        lines.append(Text(f"Late: {', '.join(run.late_sites) or 'somebody'}", style=_ALARM))
    return lines


def _run_table(moment: View, run: LiveRun) -> Table:
    table = _table("site", "epsilon", "budget", "last round", "missed", "this round")
    last = {site.name: site for site in run.sites}
    waiting = run.waiting if moment.under_way else None
    asked = waiting.asked if waiting is not None else ()
    late = run.late_sites if moment.under_way else ()
    # Who is asked again has another chance.
    absent = {} if waiting is not None and waiting.before_round else run.absent
    for name in sorted({*last, *asked, *absent}):
        site = last.get(name)
        if name in absent:
            spent = ("", "") if site is None else _spent(site)
            missed = str(site.missed if site is not None else run.done)
            cells = (name, *spent, f"takes no part: {absent[name].reason}", missed, "")
        elif site is None:
            cells = (name, "", "", "", "", _this_round(waiting, name))
        else:
            why = f": {site.code}" if site.code and site.code != site.outcome else ""
            cells = (
                name,
                *_spent(site),
                site.outcome + why,
                str(site.missed),
                _this_round(waiting, name),
            )
        lost = name in absent or (site is not None and site.outcome != "admitted")
        table.add_row(*map(escape, cells), style=_ALARM if lost or name in late else "")
    return table


def _spent(site: LiveSite) -> tuple[str, str]:
    return epsilon_text(site.epsilon), epsilon_text(site.budget)


def _since(waiting: Waiting) -> str:
    asked = f"asked {_ago(waiting.since)} ago"
    if waiting.phase == STARTING:
        return f"for {_ago(waiting.since)}"
    if waiting.deadline is None:
        return f"{asked}, and all of them are waited for"
    until = waiting.deadline.astimezone(UTC)
    return f"{asked}, goes on without the silent at {until:%H:%M:%S} UTC"


def _phase(waiting: Waiting) -> str:
    """Before a round, or of a secure sum: in each of its phases the sites are asked again."""
    return f" ({waiting.phase})" if waiting.phase else ""


def _this_round(waiting: Waiting | None, name: str) -> str:
    if waiting is None or name not in waiting.asked:
        return ""
    if waiting.phase == STARTING:
        return "not asked yet"
    done = "connected" if waiting.phase == CONNECTING else "answered"
    return done if name in waiting.answered else f"not {done} for {_ago(waiting.since)}"


def _progress(moment: View, run: LiveRun) -> str:
    if run.finished:
        return f"finished, {run.done} of {run.rounds} rounds"
    if not moment.under_way:
        return f"{run.done} of {run.rounds} rounds done, {moment.state or 'not under way'}"
    if run.pretraining:
        return f"pretraining, {run.pretraining[0]} of {run.pretraining[1]} steps"
    return f"{run.done} of {run.rounds} rounds done"


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        right = heading in ("epsilon", "budget", "missed")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    return table


def _ago(moment: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    unit, size = next(entry for entry in _UNITS if seconds >= entry[1] or entry[1] == 1)
    return f"{seconds // size} {unit}"
