"""Commands around a site's privacy ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfl.config import load_site
from medfl.errors import ConfigError

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Make and inspect a site's privacy ledger.")
    group.command("init")(init)
    app.add_typer(group, name="ledger")
    app.command()(budget)


def init(site: SiteFile) -> None:
    """Make the ledger of a hospital's cohort; once, before its first study.

    The ledger belongs to the patients, not to a study: every run on them is charged to it, for as
    long as they are used. Nothing else ever creates one.
    """
    from medfl.federation.workplace import create_ledger, hospital_workplace

    config = load_site(site)
    if config.purpose == "open-data":
        raise ConfigError(
            f"{site}: key purpose: expected 'hospital', found 'open-data', which keeps its ledger "
            "in the run folder."
        )
    folder = hospital_workplace(config).ledger_folder
    create_ledger(config, folder=folder).close()
    typer.echo(f"Ledger: {folder} (budget epsilon {config.privacy.epsilon:g})")


def budget(
    site: SiteFile,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN_DIR", help="The run folder, for a site with open data."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what a site's patients have spent, and what is left, by study and run.

    A hospital has one ledger for all studies; a site with open data has one in each run folder.
    """
    from medfl.federation.workplace import hospital_workplace, simulated_workplace
    from medfl.privacy.ledger import Ledger

    config = load_site(site)
    if config.purpose == "open-data" and run is None:
        raise ConfigError(
            f"{site}: expected --run RUN_DIR, found none; a site with open data keeps its ledger "
            "in the run folder."
        )
    workplace = (
        hospital_workplace(config) if run is None else simulated_workplace(config, run_folder=run)
    )
    with Ledger.open(workplace.ledger_folder) as ledger:
        spent = ledger.spent()
    rows = [
        {
            "study": run.study,
            "run": run.run,
            "epsilon": run.epsilon,
            "steps": run.steps,
            "charges": run.charges,
            "released": run.released,
        }
        for run in spent.by_run
    ]
    if as_json:
        totals = {
            "site": config.name,
            "epsilon": spent.private_epsilon,
            "budget": spent.budget,
            "left": spent.remaining,
            "delta": spent.delta,
            "wasted": spent.wasted_epsilon,
        }
        typer.echo(json.dumps(totals | {"runs": rows}, indent=2))
        return
    table = Table(title=f"{config.name}: epsilon {spent.private_epsilon:.3f} of {spent.budget:g}")
    for name in ("study", "run", "epsilon", "steps", "charges", "released"):
        table.add_column(name, justify="left" if name in ("study", "run") else "right")
    for row in rows:
        shown = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        table.add_row(*shown)
    console = Console()
    console.print(table)
    console.print(
        f"left {spent.remaining:.3f} at delta {spent.delta:g}; "
        f"charged but never released {spent.wasted_epsilon:.3f}",
        highlight=False,
    )
