"""`medfl rehearse`: a whole deployment on this machine, to try before anybody depends on one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from medfl.cli.advance import shown_advance


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(rehearse)


def rehearse(
    hospitals: Annotated[
        int, typer.Option(min=2, max=1000, help="How many hospitals take part.")
    ] = 3,
    trust: Annotated[
        Literal["local", "secure"],
        typer.Option(
            help="Full noise at every hospital (local), or shares of it in a secure sum (secure)."
        ),
    ] = "local",
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep everything to look at, in a new or empty folder."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port of the server, on this machine only. Default: a free one."
        ),
    ] = None,
) -> None:
    """Try a whole deployment on this machine: a server, hospitals, a study of two rounds, a report.

    Server and hospitals are real processes that talk over TLS, with certificates, keys and ledgers
    of their own, and run the commands of the guides; the patients are synthetic. Nothing is left
    behind: no process, no file, and nothing in this account's witness.
    """
    from medfl.rehearsal.play import rehearse as play
    from medfl.rehearsal.stage import staged

    with shown_advance() as advance, staged(keep, hospitals=hospitals) as stage:
        done = play(stage, hospitals=hospitals, trust=trust, port=port, advance=advance)
    table = Table(title=f"{done.rounds} rounds, trust {trust}, in {done.seconds:.0f} s")
    for heading in ("hospital", "epsilon", "budget", "charges"):
        table.add_column(heading, justify="left" if heading == "hospital" else "right")
    for account in done.accounts:
        table.add_row(
            account.site,
            f"{account.epsilon:.3f}",
            f"{account.budget:g}",
            str(account.charges),
        )
    Console().print(table)
    if keep is None:
        typer.echo("Every ledger is whole. Everything has been removed again; --keep DIR keeps it.")
        return
    typer.echo(f"Every ledger is whole. Report: {done.report}")
    typer.echo(f"Every command, and what it printed: {stage.log('commands')}")
