"""The command that shows a run while it is under way."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(dashboard)


def dashboard(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")
    ] = 0,
) -> None:
    """Show a run on a local page that refreshes itself: rounds, epsilon, Dice, who is late.

    The page is read-only and bound to the loopback address. Only files of the run folder are read.
    Ctrl-C closes the page; the run is not affected.
    """
    from medfl.reporting.dashboard import LOOPBACK, open_dashboard

    with open_dashboard(run_dir, port=port) as server:
        typer.echo(f"http://{LOOPBACK}:{server.server_port}/ (Ctrl-C ends the page, not the run)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
