"""The `medfl` command: its parts, and how every failure ends.

A mistake of the user ends in one sentence and a non-zero exit, never in a traceback.
Exit codes: 1 a run failed, 2 configuration, data or model, 3 privacy was at stake, 130 stopped, 143
stopped by SIGTERM.
"""

from __future__ import annotations

import logging
import os
import sys

import typer
from rich.console import Console
from rich.logging import RichHandler

from medfl.cli import (
    adapt,
    audit,
    backup,
    dashboard,
    data,
    ledger,
    model,
    overlap,
    pretrain,
    rehearse,
    server,
    site,
    sources,
    study,
)
from medfl.cli.ends import STOP_CODES, STOPPED, end_on_signals
from medfl.cli.examples import add_examples
from medfl.errors import (
    ConfigError,
    DataError,
    Interrupted,
    MedflError,
    ModelError,
    PdfUnavailable,
    PrivacyError,
)
from medfl.version import __version__

# Locks between processes and files for one account only are the ledger's foundation.
_NO_WINDOWS = (
    "Expected Linux or macOS, whose file locks and permissions the ledger needs, found Windows. "
    "Run medfl in WSL 2 (https://learn.microsoft.com/windows/wsl)."
)

app = typer.Typer(
    name="medfl",
    no_args_is_help=True,
    add_completion=False,
    # Reflows paragraphs, whose lines would otherwise be broken twice.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=(
        "Train brain-tumour segmentation across hospitals, with a privacy guarantee for every "
        "patient. Images never leave a site; noisy updates do, and each is charged to the site's "
        "own ledger before it is computed."
    ),
)
data.register(app)
sources.register(app)
pretrain.register(app)
study.register(app)
model.register(app)
adapt.register(app)
audit.register(app)
dashboard.register(app)
ledger.register(app)
backup.register(site.register(app), server.register(app))
rehearse.register(app)
overlap.register(app)
add_examples(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medfl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: bool = typer.Option(  # noqa: ARG001  its callback has done the work
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and stop.",
    ),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show the log."),
) -> None:
    """Common options."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )


def main() -> None:
    """Run the command line and exit."""
    console = Console(stderr=True, soft_wrap=True)
    # Before torch is imported. By default OpenMP's threads spin while they wait for each other: on
    # cores that other programs use too, they then wait for the very core that they occupy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "win32":
        console.print(f"error: {_NO_WINDOWS}", style="bold red", markup=False, highlight=False)
        sys.exit(2)
    end_on_signals()
    try:
        app()
    except MedflError as error:
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        sys.exit(_exit_code(error))
    except OSError as error:  # a full disk, a folder that may not be written
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        sys.exit(1)
    except SystemExit as end:
        if end.code in STOP_CODES:  # typer makes the first of them of Ctrl-C
            console.print(
                "Stopped. What was charged to a ledger stays charged; --resume continues a run, "
                "and the same command continues a grid of studies.",
                style="bold yellow",
            )
        raise


def _exit_code(error: MedflError) -> int:
    if isinstance(error, PrivacyError):
        return 3
    if isinstance(error, Interrupted):
        return STOPPED
    return 2 if isinstance(error, ConfigError | DataError | ModelError | PdfUnavailable) else 1
