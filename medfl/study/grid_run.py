"""`run_grid`: the cells of a grid one after the other, each run once, and the table of them all.

Sites work side by side inside a cell, cells do not: a cell that is stopped is then the only one,
and memory, progress and results are those of one `medfl simulate`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Protocol, get_args

from medfl.config import SiteConfig, StudyConfig
from medfl.config.study import Baseline
from medfl.config.study_grid import BASE, StudyGrid
from medfl.durable import write_atomically
from medfl.errors import ReportError
from medfl.runs.grid_records import (
    GRID,
    GridCell,
    GridRecord,
    GridScore,
    GridSite,
    GridVariantRecord,
    Measure,
)
from medfl.runs.grid_table import write_table
from medfl.runs.records import Variant
from medfl.runs.results import RunResults, read_run
from medfl.server.progress import Progress
from medfl.study.cell_folder import CellFolder
from medfl.study.cells import WITH_OWN_NOISE, WITHOUT_NOISE, Cell, cells_of
from medfl.study.run import run_study
from medfl.version import __version__

_OF_NO_TRUST: tuple[Variant, ...] = (*WITHOUT_NOISE, *WITH_OWN_NOISE)


class GridWatcher(Protocol):
    """Who watches a grid."""

    def kept(self, *, cells: int, finished: int) -> None:
        """So many cells there are, and so many of them were finished before."""

    def cell(
        self, name: str, *, number: int, cells: int, seconds_left: float | None, goes_on: bool
    ) -> AbstractContextManager[Progress]:
        """A cell begins, or goes on; what watches it ends with it.

        Args:
            name: Of the cell.
            number: From 1 on, finished ones included.
            cells: All of them.
            seconds_left: For this one and all that follow; None while nobody knows.
            goes_on: Whether it was begun before.
        """


def run_grid(
    grid: StudyGrid,
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    out: Path,
    jobs: int,
    watcher: GridWatcher,
    command: str = "",
) -> bool:
    """Run what is missing, and write the table and `grid.json`.

    Args:
        grid: The grid.
        study: Its study.
        sites: Its sites.
        out: Folder of the grid; cells that are finished there do not run again.
        jobs: Sites of a cell that work side by side; see `medfl.study.run.run_study`.
        watcher: Who watches.
        command: The command that repeats it, for the report.

    Returns:
        Whether the table was also written as Parquet.

    Raises:
        ConfigError: If the grid breaks a rule, or a cell in `out` was begun as something else.
        MedflError: If a cell cannot be run; what is finished stays.
    """
    cells = cells_of(
        grid, study, sites, begun=lambda name: CellFolder(out=out, cell=name).baselines
    )
    folders = [CellFolder(out=out, cell=cell.name) for cell in cells]
    # All of them first: nobody waits for hours to learn that the last one is another one's.
    begun = [folder.begin(cell) for folder, cell in zip(folders, cells, strict=True)]
    todo = [number for number, folder in enumerate(folders) if not folder.is_finished]
    watcher.kept(cells=len(cells), finished=len(cells) - len(todo))
    for place, number in enumerate(todo):
        cell, folder, began = cells[number], folders[number], time.monotonic()
        left = _seconds_left([cells[each] for each in todo[place:]], cells, folders)
        with watcher.cell(
            cell.name,
            number=len(cells) - len(todo) + place + 1,
            cells=len(cells),
            seconds_left=left,
            goes_on=begun[number],
        ) as progress:
            run_study(
                cell.study,
                cell.sites,
                out=folder.run,
                jobs=jobs,
                resume=begun[number],
                progress=progress,
            )
        whole = time.monotonic() - began
        folder.finish(cell, seconds=None if begun[number] else round(whole, 1))
    runs = [read_run(folder.run) for folder in folders]
    record = _record(grid, study, sites, cells=cells, runs=runs, command=command)
    write_atomically(out / GRID.name, GRID.text(record).encode())
    scores = (row for cell, run in zip(cells, runs, strict=True) for row in scores_of(cell, run))
    return write_table(scores, folder=out)


def scores_of(cell: Cell, run: RunResults) -> Iterator[GridScore]:
    """The rows of one cell: the final scores of each of its models.

    Args:
        cell: The cell.
        run: Its run.
    """
    for model in run.variants:
        if model != "federated" and model not in cell.study.evaluation.baselines:
            continue
        shared, noiseless = model in _OF_NO_TRUST, model in WITHOUT_NOISE
        for score in run.scores_of(model):
            for measure in get_args(Measure):
                value = getattr(score, measure)
                if value is not None:
                    yield GridScore(
                        cell=cell.name,
                        variant=cell.variant,
                        trust="" if shared else cell.trust,
                        epsilon=None if noiseless else cell.epsilon,
                        seed=cell.seed,
                        model=model,
                        site=score.site,
                        patient=score.patient,
                        region=score.region,
                        measure=measure,
                        value=value,
                    )


def _seconds_left(
    todo: Sequence[Cell], cells: Sequence[Cell], folders: Sequence[CellFolder]
) -> float | None:
    """By cells with the same baselines, which take most of the time; else by any."""
    known: dict[tuple[Baseline, ...], list[float]] = {}
    for cell, folder in zip(cells, folders, strict=True):
        if folder.is_finished and folder.seconds is not None:
            known.setdefault(cell.study.evaluation.baselines, []).append(folder.seconds)
    if not known:
        return None
    of_any = fmean(seconds for group in known.values() for seconds in group)
    return sum(fmean(known.get(cell.study.evaluation.baselines, [of_any])) for cell in todo)


def _record(
    grid: StudyGrid,
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    cells: Sequence[Cell],
    runs: Sequence[RunResults],
    command: str,
) -> GridRecord:
    variants = [
        GridVariantRecord(
            name=variant.name,
            changes=(
                *(f"{key} = {value}" for key, value in variant.settings.items()),
                *(f"{key}: none" for key in variant.without),
            ),
        )
        for variant in grid.variants
    ]
    return GridRecord(
        id=grid.id,
        medfl=__version__,
        finished=datetime.now(UTC).replace(microsecond=0),
        study=study,
        sites=tuple(GridSite(name=site.name, patients=site.declared_patients) for site in sites),
        seeds=grid.seeds,
        trust=grid.trust,
        epsilons=grid.targets,
        variants=(GridVariantRecord(name=BASE, changes=()), *variants),
        cells=tuple(_cell(cell, run) for cell, run in zip(cells, runs, strict=True)),
        command=command,
    )


def _cell(cell: Cell, run: RunResults) -> GridCell:
    missing = sorted({site.name for site in cell.sites} - set(run.privacy))
    if missing:
        raise ReportError(
            f"{run.folder}: expected a run that all sites took part in, found one without "
            f"{missing}. Cells with other sites cannot be compared."
        )
    return GridCell(
        name=cell.name,
        variant=cell.variant,
        trust=cell.trust,
        epsilon=cell.epsilon,
        seed=cell.seed,
        spent=run.largest_loss.epsilon_pld,
        delta=run.largest_delta,
        guarantee=run.guarantee,
    )
