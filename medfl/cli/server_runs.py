"""`medfl server runs`, `stop` and `logs`: the runs of a server, no matter who started them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medfl.errors import ReportError
from medfl.json_text import to_json
from medfl.runs.live_run import read_live

if TYPE_CHECKING:
    from medfl.deployment.coordinator.run_book import RunBook, RunRecord

STOP_SECONDS = 120.0
POLL_SECONDS = 0.5

ServerFolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Id of the run, the beginning of its id, or its run folder."
    ),
]


def runs(
    folder: ServerFolderArgument,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the runs of a server: what is under way, and how the others ended."""
    from medfl.deployment.coordinator.server_folder import ServerFolder

    book = ServerFolder(folder).book
    rows = [_row(book, record) for record in book.records()]
    if as_json:
        typer.echo(to_json(rows, indent=2))
        return
    if not rows:
        typer.echo(f"No run yet: `medfl server run {folder} STUDY.toml --out RUN_DIR` begins one.")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "study", "rounds", "began", "state", "run folder"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        rounds = "" if row["done"] is None else f"{row['done']} of {row['rounds']}"
        began = f"{row['began'][:16].replace('T', ' ')} UTC"
        shown = (row["run"], row["study"], rounds, began, row["state"], row["out"])
        table.add_row(*map(escape, shown), style="bold" if row["under_way"] else "")
    Console().print(table)


def _row(book: RunBook, record: RunRecord) -> dict[str, Any]:
    try:
        live = read_live(record.out)
    except ReportError:
        live = None  # moved away, perhaps
    return {
        "run": record.run,
        "study": record.study,
        "out": str(record.out),
        "under_way": book.is_under_way(record),
        "state": book.state(record),
        "detached": record.detached,
        "began": record.began.isoformat(),
        "ended": record.ended.isoformat() if record.ended else None,
        "outcome": record.outcome,
        "reason": record.reason,
        "done": live.done if live else None,
        "rounds": live.rounds if live else None,
    }


def stop(folder: ServerFolderArgument, name: RunName) -> None:
    """Stop a run, wherever it was started; `medfl server run --resume` continues it.

    What was charged to a ledger stays charged, and what was done stays in the run folder.
    """
    from medfl.deployment.coordinator.run_book import require_under_way, wait_until_ended
    from medfl.deployment.coordinator.server_folder import ServerFolder

    book = ServerFolder(folder).book
    record = book.find(name)
    require_under_way(book, record)
    book.ask_to_stop(record)
    typer.echo(f"Stopping {record.run} ...", err=True)
    ended = wait_until_ended(book, record, seconds=STOP_SECONDS, wait=time.sleep)
    if ended.outcome == "completed":
        typer.echo(f"{ended.run} came to its end before it was stopped. Run folder: {ended.out}")
        return
    typer.echo(f"{ended.run}: {book.state(ended)}. Run folder: {ended.out}")
    typer.echo("The same `medfl server run` with --resume goes on with it.")


def logs(
    folder: ServerFolderArgument,
    name: RunName,
    *,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Keep showing new lines until the run has ended, or Ctrl-C."
        ),
    ] = False,
) -> None:
    """Show the log of a run: what its terminal shows, or would if it had one."""
    from medfl.deployment.coordinator.server_folder import ServerFolder

    book = ServerFolder(folder).book
    record = book.find(name)
    show(
        book.log(record),
        goes_on=lambda: follow and book.is_under_way(record),
        wait=time.sleep,
    )
    if follow or not book.is_under_way(record):
        typer.echo(f"{record.run}: {book.state(book.find(record.run))}", err=True)


def show(log: Path, *, goes_on: Callable[[], bool], wait: Callable[[float], object]) -> None:
    """Print a log, and what comes to it.

    Args:
        log: The file; may be missing.
        goes_on: Whether more may come.
        wait: Called between two looks, with seconds.
    """
    shown = 0
    while True:
        more = goes_on()  # asked first, so that what was written before the end is shown
        if log.exists():
            with log.open("rb") as file:
                file.seek(shown)
                content = file.read()
            shown += len(content)
            typer.echo(content, nl=False)
        if not more:
            return
        wait(POLL_SECONDS)
