"""Commands around a site's privacy ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfl.cli import affected
from medfl.cli.advance import shown_advance
from medfl.config import SiteConfig, load_site
from medfl.errors import ConfigError, DataError, LedgerError

if TYPE_CHECKING:
    from medfl.privacy.accounting.reassessment import Reassessment
    from medfl.privacy.ledger.chain import Entry
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


def init(
    site: SiteFile,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Rewrite a ledger under which nothing has been agreed yet to match the site file.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Create the ledger of a hospital's cohort, once, after `medfl check` and before any study.

    The ledger belongs to the patients, not to a study: every run on them is charged to it for as
    long as they are used. Name, budget and delta are shown first, and can never be changed once the
    first study has been agreed to. No ledger is created while `medfl check` finds an error in
    images, keys or folders, or if another ledger on this machine pays for one of the patients.
    """
    from medfl.preflight.site import obstacles_to_ledger
    from medfl.privacy.ledger.store import LedgerStore
    from medfl.site.known_patients import witness_of
    from medfl.site.lost_ledger import make_again
    from medfl.site.state import create_ledger, hospital_state

    config = _hospital(site)
    site_state = hospital_state(config)
    folder = site_state.ledger_folder
    witness_of(config)  # before images are read: one that cannot be used refuses everything
    if again != LedgerStore.is_in(folder):
        _refuse_to_make(site_state, again=again)
    with shown_advance() as advance:
        found = obstacles_to_ledger(
            config,
            file=site,
            on_progress=lambda part, done, total: advance(f"{config.name}: {part}", done, total),
        )
    if found:
        first = found[0]
        raise ConfigError(
            f"{site}: expected no errors before a budget is fixed permanently, found "
            f"{len(found)}; the first is {first.name}: expected {first.rule}, found {first.value}. "
            f"`medfl check {site}` lists all of them with their fixes."
        )
    site_state.require_unclaimed((*site_state.patients.training, *site_state.patients.held_out))
    _show_terms(site_state)
    if not yes:
        typer.confirm("Create it? (--yes skips this question)", abort=True)
    (make_again(config) if again else create_ledger(config, folder=folder)).close()
    typer.echo(f"Ledger: {folder} (budget epsilon {config.privacy.epsilon:g})")


def _refuse_to_make(site_state: SiteState, *, again: bool) -> None:
    """Say at once if a ledger is missing, or exists already."""
    folder = site_state.ledger_folder
    if again:
        raise ConfigError(
            f"{folder}: expected a ledger to make again, found none; leave out --again."
        )
    with site_state.open_ledger() as ledger:
        spent = ledger.spent()
    raise LedgerError(
        f"{folder}: expected no ledger, found one (epsilon {spent.private_epsilon:.3f} of "
        f"{spent.budget:g} spent); it is never replaced. Until something has been agreed to, "
        "`medfl ledger init SITE.toml --again` rewrites it to match the site file."
    )


def _show_terms(site_state: SiteState) -> None:
    """What a ledger would be created for."""
    from medfl.privacy.ledger.witness_place import witness_folder

    site, parts = site_state.site, site_state.patients
    typer.echo(
        "The ledger will be created for the following, which the first agreement makes permanent:"
    )
    for name, value in (
        ("site", site.name),
        ("epsilon", f"{site.privacy.epsilon:g}, all studies together"),
        ("delta", f"{site.privacy.delta:g}"),
        ("patients", f"{len(parts.training)} training, {len(parts.held_out)} held out"),
        ("images", ", ".join(map(str, site.data.roots))),
        ("ledger", str(site_state.ledger_folder)),
        ("witness", str(witness_folder())),
    ):
        typer.echo(f"  {name:<10}{value}")


def verify(site: SiteFile, run: RunFolder = None) -> None:
    """Verify a ledger: file, chain, head, witness, audit log, and every run's total recomputed."""
    from medfl.site.log_check import checked_log

    site_state = _site_state(site, run=run)
    with site_state.open_ledger() as ledger:
        ledger.recount()
        head, spent, found = ledger.head(), ledger.spent(), ledger.reassess()
        log = checked_log(site_state.site, ledger=ledger.entries())
    _require_unclaimed(site_state)
    typer.echo(
        f"Whole: {head.sequence} entries, head {head.hash[:12]}, epsilon "
        f"{spent.private_epsilon:.3f} of {spent.budget:g} at delta {spent.delta:g}"
        f"{_qualified(found)}"
    )
    _echo_log(log)


def export(
    site: SiteFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new JSON file.")],
    run: RunFolder = None,
) -> None:
    """Write a ledger for an auditor: entries, totals and audit log, signed with the site's key.

    Patients appear in it as keyed hashes; the key of these hashes never leaves the site.
    """
    from medfl.deployment.hospital.participation import require_not_left
    from medfl.durable import write_atomically
    from medfl.site.audit_log import audit_log_of
    from medfl.site.ledger_export import export_ledger

    if out.exists():
        raise ConfigError(f"{out}: expected a new file, found an existing one.")
    site_state = _site_state(site, run=run)
    if run is None:
        # Its keys are gone; the export that was made on leaving remains.
        require_not_left(site_state.site.state)
    with site_state.open_ledger() as ledger:
        log = audit_log_of(site_state.site)
        content = export_ledger(ledger, keys=site_state.keys, log=log)
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
    logged = f", {len(content['log'])} of the audit log" if log is not None else ""
    typer.echo(f"Written: {out} ({len(content['entries'])} entries{logged})")


def check(
    exported: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.")],
    key: Annotated[Path, typer.Option("--key", metavar="site.pub", help="The site's public keys.")],
) -> None:
    """Verify an exported ledger and its audit log: signatures, chains, all totals recomputed.

    This takes only the file and the site's site.pub.
    """
    from medfl.protocol.keys import read_public
    from medfl.site.ledger_export import check_export, log_of, reassess_export

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
    _echo_log(log_of(content))


def acknowledge(
    site: SiteFile,
    reason: Annotated[str, typer.Option(help="What happened, in your own words; it is recorded.")],
) -> None:
    """Carry on after a hospital's ledger was lost, restored from an old copy, or moved here.

    Nothing is forgiven: whatever this machine's witness remembers and the ledger lacks is charged
    at once, and the reason is recorded in the ledger.
    """
    from medfl.site.lost_ledger import acknowledge_loss

    with acknowledge_loss(_hospital(site), reason=reason) as ledger:
        spent, found = ledger.spent(), ledger.reassess()
    typer.echo(
        f"Recorded. Epsilon {spent.private_epsilon:.3f} of {spent.budget:g} is spent, "
        f"{spent.remaining:.3f} is left{_qualified(found)}"
    )


def _echo_log(log: Sequence[Entry]) -> None:
    """What a verified audit log holds."""
    if not log:
        return
    older = sum(each.content.get("done", each.time) < log[0].time for each in log)
    since = f"; {older} of the ledger's entries are older than the log" if older else ""
    counts = Counter(entry.kind for entry in log)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    typer.echo(f"Audit log: whole since {log[0].time}: {kinds}{since}.")


def _require_unclaimed(site_state: SiteState) -> None:
    """Refuse to show a budget that another ledger of this machine has spent from.

    Where there is no other ledger, no image is read.
    """
    from medfl.site.known_patients import other_ledgers

    site = site_state.site
    if site.purpose == "open-data" or not other_ledgers(site, own=site_state.ledger_folder):
        return
    try:
        site_state.require_unclaimed(site_state.patients.training)
    except DataError as error:
        typer.echo(
            f"warning: whether another ledger pays for a patient is unknown: {error}", err=True
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
    """Show what a site's patients have spent and have left, by study and run.

    A hospital has one ledger for all studies; a site with open data has one in each run folder.
    """
    config, site_state = load_site(site), _site_state(site, run=run)
    with site_state.open_ledger() as ledger:
        spent, found = ledger.spent(), ledger.reassess()
    _require_unclaimed(site_state)
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
