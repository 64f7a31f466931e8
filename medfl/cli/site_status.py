"""`medfl site status`: the state of a hospital's site, for administrators and programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.errors import ConfigError

if TYPE_CHECKING:
    from medfl.deployment.hospital.status import SiteStatus
    from medfl.deployment.monitoring.report import Health

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON, for programs; the schema is in site_configs/monitoring."
    ),
]
HealthOnly = Annotated[
    bool,
    typer.Option(
        "--health",
        help="Only check its health: exit code 1, and the reasons, if something is wrong.",
    ),
]


def status(site: SiteFile, as_json: AsJson = False, health: HealthOnly = False) -> None:
    """Show whether the site is running, connected and paused, and what is left of its budget.

    Reads the state folder and must be run by the site's own account. It changes nothing and sends
    nothing.
    """
    if as_json and health:
        raise ConfigError("Expected --json or --health, found both.")
    from medfl.deployment.hospital.site_file import load_hospital
    from medfl.deployment.hospital.status import read_status
    from medfl.json_text import to_json

    found = read_status(load_hospital(site))
    if health:
        end_with(found.health)
    elif as_json:
        typer.echo(to_json(found.model_dump(mode="json"), indent=2))
    else:
        for line in _lines(found):
            typer.echo(line)


def end_with(health: Health) -> None:
    """Say whether all is well, and end with an exit code that says the same.

    Raises:
        typer.Exit: With code 1 if it is not.
    """
    typer.echo(" ".join([health.status, *health.reasons]))
    if health.status != "ok":
        raise typer.Exit(1)


def _lines(found: SiteStatus) -> list[str]:
    since = f" since {found.connection_since:%Y-%m-%d %H:%M} UTC" if found.connection_since else ""
    if found.left:
        state = "left for good"
    elif not found.running:
        state = "does not run: `medfl site start` starts it"
    else:
        state = f"runs, {'connected' if found.connected else 'not connected'}{since}"
    lines = [f"{found.site}: {state}{', paused' if found.paused else ''}"]
    ledger = found.ledger
    if ledger is None:
        lines.append("Ledger: missing or damaged; `medfl ledger verify` says why")
    else:
        lines.append(
            f"Epsilon: {ledger.epsilon_spent:.3f} of {ledger.epsilon_budget:g} spent, "
            f"{ledger.epsilon_left:.3f} left at delta {ledger.delta:g}"
        )
        lines += [
            f"Run {run.run} of {run.study}: {run.rounds} rounds, the last at "
            f"{run.last_round:%Y-%m-%d %H:%M} UTC"
            for run in ledger.runs
        ]
    if found.authority is not None:
        lines.append(
            f"Authority of the server: {found.authority.days_left} days left, until "
            f"{found.authority.end:%Y-%m-%d}"
        )
    if found.disk_free_bytes is not None:
        lines.append(f"Disk: {found.disk_free_bytes / 1e9:.1f} GB free")
    return lines
