"""`medfl study run`: one study in many settings, as a grid file describes them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from medfl.cli.jobs import default_jobs
from medfl.config import load_site, load_study
from medfl.config.study_grid import load_study_grid

if TYPE_CHECKING:
    from medfl.server.progress import Progress

LOCK = ".lock"
"""In the folder of a grid: held by the process that runs its cells."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="One study in many settings, from a grid file to a report."
    )
    group.command()(run)
    app.add_typer(group, name="study")


def run(
    grid: Annotated[
        Path,
        typer.Argument(
            metavar="GRID.toml", help="The grid: study, sites, seeds, trust modes, epsilons."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the runs and the table; runs/ID without it."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Sites of a run that work side by side, each in a process of one thread; the "
            "results are the same bits. Without it: one for each core, and one alone for a GPU.",
        ),
    ] = None,
) -> None:
    """Run every cell of a grid of studies, and write its table, figures and report.

    A cell is an ordinary run folder. One that is finished never runs again, one that was stopped
    goes on, and one that was begun as something else is refused: the same command does all of it.
    Sites have to hold open data, since every cell is charged to their patients.
    """
    described = load_study_grid(grid)
    study, sites = load_study(described.study), [load_site(path) for path in described.sites]
    from medfl.deployment.lock import exclusive
    from medfl.reporting.grid_report import write_grid_report
    from medfl.study.grid_run import run_grid

    folder = out or Path("runs") / described.id
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / LOCK, noun="a grid"):
        parquet = run_grid(
            described,
            study,
            sites,
            out=folder,
            jobs=default_jobs(sites) if jobs is None else jobs,
            watcher=_Shown(Console(stderr=True)),
            command=shlex.join(["medfl", "study", "run", str(grid), "--out", str(folder)]),
        )
        page = write_grid_report(folder)
    typer.echo(f"Table: {folder / 'results.csv'}")
    if not parquet:
        typer.echo("It was not written as Parquet, which needs pyarrow (pip install pyarrow).")
    typer.echo(f"Report: {page}")


class _Shown:
    """Says before each cell which one it is and how long all of it may take; see `GridWatcher`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def kept(self, *, cells: int, finished: int) -> None:
        """Say what there is to do."""
        from medfl.reporting.wording import counted

        self._say(f"{counted(cells, 'run')}, {finished} of them finished")

    @contextmanager
    def cell(
        self, name: str, *, number: int, cells: int, seconds_left: float | None, goes_on: bool
    ) -> Iterator[Progress]:
        """Name the cell, and show the run as `medfl simulate` does."""
        from medfl.cli.live import LiveProgress

        left = "" if seconds_left is None else f", about {duration(seconds_left)} left"
        again = " goes on" if goes_on else ""
        self._say(f"run {number} of {cells}: {name}{again}{left}")
        with LiveProgress(self._console) as progress:
            yield progress

    def _say(self, text: str) -> None:
        self._console.print(text, style="bold", highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 20 min``, rounded up."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
