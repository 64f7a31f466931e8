"""Commands around a site's privacy ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfl.cli import affected
from medfl.config import SiteConfig, load_site
from medfl.errors import ConfigError

if TYPE_CHECKING:
    from medfl.privacy.accounting.reassessment import Reassessment
    from medfl.site.state import SiteState

RunFolder = Annotated[
    Path | None,
    typer.Option("--run", metavar="RUN_DIR", help="The run folder, for a site with open data."),
]
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Make and inspect a site's privacy ledger.")
    group.command("init")(init)
    group.command("verify")(verify)
    group.command("export")(export)
    group.command("check-export")(check)
    group.command("acknowledge")(acknowledge)
    app.add_typer(group, name="ledger")
    app.command()(budget)


def init(site: SiteFile) -> None:
    """Make the ledger of a hospital's cohort; once, before its first study.

    The ledger belongs to the patients, not to a study: every run on them is charged to it, for as
    long as they are used. Nothing else ever creates one, and none is made where another ledger of
    this machine pays for one of the patients: every image is read once to see that.
    """
    from medfl.site.state import create_ledger, hospital_state

    config = _hospital(site)
    folder = hospital_state(config).ledger_folder
    create_ledger(config, folder=folder).close()
    typer.echo(f"Ledger: {folder} (budget epsilon {config.privacy.epsilon:g})")


def verify(site: SiteFile, run: RunFolder = None) -> None:
    """Check a ledger: file, chain, head, witness, and every run's total counted again."""
    with _site_state(site, run=run).open_ledger() as ledger:
        ledger.recount()
        head, spent, found = ledger.head(), ledger.spent(), ledger.reassess()
    typer.echo(
        f"Whole: {head.sequence} entries, head {head.hash[:12]}, epsilon "
        f"{spent.private_epsilon:.3f} of {spent.budget:g} at delta {spent.delta:g}"
        f"{_qualified(found)}"
    )


def export(
    site: SiteFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new JSON file.")],
    run: RunFolder = None,
) -> None:
    """Write a ledger for an auditor: every entry and the totals, signed by the site's key.

    Patients stand in it as keyed hashes; the key never leaves the site.
    """
    from medfl.deployment.hospital.participation import require_not_left
    from medfl.durable import write_atomically
    from medfl.site.ledger_export import export_ledger

    if out.exists():
        raise ConfigError(f"{out}: expected a new file, found one that exists.")
    site_state = _site_state(site, run=run)
    if run is None:
        # Its keys are gone, and the export made on leaving is there.
        require_not_left(site_state.site.state)
    with site_state.open_ledger() as ledger:
        content = export_ledger(ledger, keys=site_state.keys)
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
    typer.echo(f"Written: {out} ({len(content['entries'])} entries)")


def check(
    exported: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.")],
    key: Annotated[Path, typer.Option("--key", metavar="site.pub", help="The site's public keys.")],
) -> None:
    """Check an exported ledger: signature, chain, and all totals counted again.

    Needs nothing but the file and the site's site.pub.
    """
    from medfl.protocol.keys import read_public
    from medfl.site.ledger_export import check_export, reassess_export

    event_key = read_public(key)
    try:
        content = json.loads(exported.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{exported}: expected an exported ledger, found another file.")
    spent = check_export(content, event_key=event_key)
    typer.echo(
        f"Whole: {len(content['entries'])} entries, epsilon {spent.private_epsilon:.3f} of "
        f"{spent.budget:g} at delta {spent.delta:g}{_qualified(reassess_export(content))}"
    )


def acknowledge(
    site: SiteFile,
    reason: Annotated[str, typer.Option(help="What happened, in your words; it is recorded.")],
) -> None:
    """Go on after a hospital's ledger was lost, restored from an old copy, or moved here.

    Nothing is forgiven: everything that this machine's witness remembers and the ledger does not
    hold is charged at once, and the reason is recorded in the ledger.
    """
    from medfl.site.lost_ledger import acknowledge_loss

    with acknowledge_loss(_hospital(site), reason=reason) as ledger:
        spent, found = ledger.spent(), ledger.reassess()
    typer.echo(
        f"Recorded. Epsilon {spent.private_epsilon:.3f} of {spent.budget:g} is spent, "
        f"{spent.remaining:.3f} is left{_qualified(found)}"
    )


def _qualified(found: Reassessment) -> str:
    """The end of a sentence that states a total, and the warning that goes with it."""
    return f", as charged.\n{affected.warning(found)}" if found.steps else "."


def _hospital(site: Path) -> SiteConfig:
    config = load_site(site)
    if config.purpose == "open-data":
        raise ConfigError(
            f"{site}: key purpose: expected 'hospital', found 'open-data', which keeps its ledger "
            "in the run folder."
        )
    return config


def _site_state(site: Path, *, run: Path | None) -> SiteState:
    from medfl.site.state import hospital_state, simulated_state

    config = load_site(site)
    if config.purpose == "open-data" and run is None:
        raise ConfigError(
            f"{site}: expected --run RUN_DIR, found none; a site with open data keeps its ledger "
            "in the run folder."
        )
    if run is None:
        return hospital_state(config)
    site_state = simulated_state(config, run_folder=run)
    if not site_state.ledger_folder.exists():
        raise ConfigError(f"{run}: expected a run of the site {config.name}, found no ledger.")
    return site_state


def budget(
    site: SiteFile,
    run: RunFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what a site's patients have spent, and what is left, by study and run.

    A hospital has one ledger for all studies; a site with open data has one in each run folder.
    """
    config = load_site(site)
    with _site_state(site, run=run).open_ledger() as ledger:
        spent, found = ledger.spent(), ledger.reassess()
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
        typer.echo(json.dumps(totals | {"runs": rows} | affected.as_json(found), indent=2))
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
    if found.steps:
        typer.echo(affected.warning(found))
