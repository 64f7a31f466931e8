"""`medfl server status`: a server, its hospitals and its run, once or as they change."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from medfl.cli.site_status import AsJson, HealthOnly, end_with
from medfl.cli.status_view import View, one_line, render, report, view
from medfl.errors import ConfigError
from medfl.json_text import to_json

WATCH_SECONDS = 2.0


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="A run folder, or the id of a run. Default: the run under way, or the last one.",
        ),
    ] = None,
    *,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Keep showing it until Ctrl-C; outside a terminal, one line for each change.",
        ),
    ] = False,
    as_json: AsJson = False,
    health: HealthOnly = False,
) -> None:
    """Show the server, its hospitals, and the run under way: who is connected, who is late.

    Reads the server's folder and the run folder, and asks the server whether it is running. Changes
    nothing.
    """
    if watch + as_json + health > 1:
        raise ConfigError("Expected one of --watch, --json and --health, found several.")
    from medfl.deployment.coordinator.report import health_of
    from medfl.deployment.coordinator.server_folder import ServerFolder
    from medfl.deployment.coordinator.status import read_status
    from medfl.deployment.monitoring.report import free_bytes

    server = ServerFolder(folder)

    def look() -> View:
        book = server.book
        if run_dir is None:
            record = next(reversed(book.under_way() or book.records()), None)
        elif run_dir.exists():
            known = [record for record in book.records() if record.out == run_dir.resolve()]
            record = next(iter(known), None)
        else:
            record = book.find(str(run_dir))
        return view(
            read_status(server),
            run_dir=record.out if record else run_dir,
            under_way=record is not None and book.is_under_way(record),
            state=book.state(record) if record else "",
            disk_free_bytes=free_bytes(server.path),
        )

    console = Console()
    if health:
        end_with(health_of(read_status(server)))
    elif as_json:
        typer.echo(to_json(report(look()), indent=2))
    elif watch:
        with suppress(KeyboardInterrupt):
            keep_showing(look, console, wait=time.sleep)
    else:
        shown = look()
        console.print(render(shown))
        for other in server.book.under_way():
            if other.out != shown.run_dir:
                console.print(
                    f"Also under way: {other.run} (study {other.study}); "
                    f"--run {other.run} shows it.",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )


def keep_showing(
    look: Callable[[], View], console: Console, *, wait: Callable[[float], object]
) -> None:
    """Show every moment until `wait` raises: in place on a terminal, else a line for each change.

    Args:
        look: Reads a moment.
        console: Where to show it.
        wait: Called between two moments, with seconds.
    """
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                live.update(render(look()), refresh=True)
                wait(WATCH_SECONDS)
    before = ""
    while True:
        line = one_line(look())
        if line != before:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            console.print(f"{now} {line}", soft_wrap=True, highlight=False, markup=False)
            before = line
        wait(WATCH_SECONDS)
