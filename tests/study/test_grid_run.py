"""A grid of studies: each cell runs once, whatever stops it, and the table holds them all."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from safetensors.torch import load_file

from medfl.config import SiteConfig, StudyConfig
from medfl.config.study_grid import StudyGrid, load_study_grid
from medfl.errors import ConfigError
from medfl.runs.files import SUMMARY
from medfl.runs.grid_records import GRID
from medfl.runs.grid_table import COLUMNS, PARQUET, TABLE, read_table
from medfl.runs.records import Round
from medfl.runs.results import read_run
from medfl.server.progress import Progress, Silent
from medfl.study.baselines import run_baseline
from medfl.study.grid_run import run_grid
from medfl.study.workers import Workers
from tests.federations import Federation

pytestmark = pytest.mark.slow

TEXT = """
id = "grid"
study = "study.toml"
sites = ["site.toml"]
seeds = [1, 2]
epsilons = [8, 3]
baselines = ["initial-only", "alone", "adapted"]
"""
NAMES = [f"local-epsilon-{target}-seed-{seed}" for seed in (1, 2) for target in (8, 3)]


class Killed(BaseException):
    """Stands for whatever ends a process."""


@dataclass
class Watcher:
    """Notes which cells run, and may end one after its first round."""

    end_in: str = ""
    ran: list[tuple[str, int, bool]] = field(default_factory=list)
    left: list[float | None] = field(default_factory=list)
    finished: int = 0

    def kept(self, *, cells: int, finished: int) -> None:
        assert cells == len(NAMES)
        self.finished = finished

    @contextmanager
    def cell(
        self, name: str, *, number: int, cells: int, seconds_left: float | None, goes_on: bool
    ) -> Iterator[Progress]:
        assert cells == len(NAMES)
        self.ran.append((name, number, goes_on))
        self.left.append(seconds_left)
        yield Ending() if name == self.end_in else Silent()


class Ending(Silent):
    """Ends the process after the first round."""

    def round_finished(self, record: Round) -> None:
        assert record.round == 1
        raise Killed


@dataclass
class Grid:
    """A grid over two of the tiny hospitals, in a folder of its own."""

    federation: Federation
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def sites(self) -> list[SiteConfig]:
        privacy = {"share_metrics": True, "allow_baselines": True}
        return self.federation.sites(
            "east", "south", privacy=privacy, adapt={"steps": 1, "folds": 2}
        )

    def run(self, text: str = TEXT, *, end_in: str = "", **changes: Any) -> Watcher:
        path = self.folder / "grid.toml"
        path.write_text(text)
        watcher = Watcher(end_in=end_in)
        grid: StudyGrid = load_study_grid(path)
        study: StudyConfig = self.federation.study(**changes)
        run_grid(grid, study, self.sites, out=self.out, jobs=1, watcher=watcher, command="again")
        return watcher


@pytest.fixture(scope="module")
def finished(shared_federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """A grid whose second cell was ended once, in its first round."""
    grid = Grid(federation=shared_federation, folder=tmp_path_factory.mktemp("grid"))
    with pytest.raises(Killed):
        grid.run(end_in=NAMES[1])
    assert not (grid.out / TABLE).exists()
    watcher = grid.run()
    assert watcher.finished == 1
    assert watcher.ran == [
        (name, number, number == 2) for number, name in enumerate(NAMES, start=1) if number > 1
    ]
    assert watcher.left[0] is not None
    assert watcher.left == sorted(watcher.left, reverse=True)  # type: ignore[type-var]
    return grid


@pytest.fixture
def copied(finished: Grid, federation: Federation, tmp_path: Path) -> Grid:
    """The same to spoil; its sites are the same, and so are their patients."""
    shutil.copytree(finished.folder, tmp_path / "grid")
    return Grid(federation=federation, folder=tmp_path / "grid")


def test_a_stopped_cell_goes_on_and_a_finished_one_never_runs_again(finished: Grid) -> None:
    before = (finished.out / TABLE).read_bytes()
    rounds = (finished.out / "cells" / NAMES[1] / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in rounds] == [1, 2]
    watcher = finished.run()
    assert (watcher.finished, watcher.ran) == (4, [])
    assert (finished.out / TABLE).read_bytes() == before


def test_the_table_holds_every_score_once(finished: Grid) -> None:
    rows = read_table(finished.out)
    patients = {(row.site, row.patient) for row in rows}
    regions = 2
    by_model = {
        model: [row for row in rows if (row.model, row.measure) == (model, "dice")]
        for model in ("federated", "adapted", "alone", "initial-only")
    }
    assert {row.model for row in rows} == set(by_model)
    for model, found in by_model.items():
        of_noise = model in ("federated", "adapted")
        assert len(found) == len(patients) * regions * 2 * (2 if of_noise else 1)
        assert {row.epsilon for row in found} == ({8.0, 3.0} if of_noise else {None})
        assert {row.trust for row in found} == ({"local"} if of_noise else {""})
    run = read_run(finished.out / "cells" / NAMES[2])
    scored = {(s.site, s.patient, s.region): s.dice for s in run.scores_of("adapted")}
    told = {
        (row.site, row.patient, row.region): row.value
        for row in by_model["adapted"]
        if (row.seed, row.epsilon) == (2, 8.0)
    }
    assert told == scored


def test_both_files_of_the_table_are_the_same(finished: Grid) -> None:
    with (finished.out / TABLE).open(newline="") as file:
        plain = list(csv.DictReader(file))
    other = parquet.read_table(finished.out / PARQUET)
    assert tuple(other.column_names) == tuple(plain[0]) == COLUMNS
    for row, typed in zip(plain, other.to_pylist(), strict=True):
        assert float(row["value"]) == pytest.approx(typed["value"], abs=1e-6)
        assert row["epsilon"] == ("" if typed["epsilon"] is None else f"{typed['epsilon']:g}")
        assert (row["patient"], int(row["seed"])) == (typed["patient"], typed["seed"])


def test_the_record_says_what_every_run_has_spent(finished: Grid) -> None:
    record = GRID.read(finished.out)
    assert [cell.name for cell in record.cells] == NAMES
    assert all(0 < cell.spent <= cell.epsilon for cell in record.cells)
    assert {cell.guarantee for cell in record.cells} == {"simulated"}  # the tiny study has a seed


def test_a_cell_that_was_begun_as_something_else_is_refused_and_named(copied: Grid) -> None:
    cell = copied.out / "cells" / NAMES[0]
    before = (cell / SUMMARY.name).read_bytes()
    with pytest.raises(ConfigError) as refused:
        copied.run(training={"learning_rate": 0.25})
    assert str(refused.value).startswith(f"{cell}: ")
    assert "study.training.learning_rate = 0.5 (now 0.25)" in str(refused.value)
    assert (cell / SUMMARY.name).read_bytes() == before


def test_a_changed_site_is_refused_unless_it_changes_no_result(
    copied: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = copied.sites
    moved = [site.model_copy(update={"state": Path("/elsewhere"), "threads": 2}) for site in sites]
    monkeypatch.setattr(Grid, "sites", moved)
    assert copied.run().ran == []
    more = sites[1].adapt.model_copy(update={"steps": 2})
    monkeypatch.setattr(Grid, "sites", [sites[0], sites[1].model_copy(update={"adapt": more})])
    with pytest.raises(ConfigError, match=r"sites.south.adapt.steps = 1 \(now 2\)"):
        copied.run()


def test_a_folder_of_somebody_else_is_refused_and_one_without_a_name_is_made_again(
    copied: Grid,
) -> None:
    cell = copied.out / "cells" / NAMES[3]
    shutil.rmtree(cell)
    (cell / "checkpoints").mkdir(parents=True)  # killed before `run.json`
    assert [name for name, *_ in copied.run().ran] == [NAMES[3]]
    (copied.out / "cells" / f"{NAMES[3]}.json").unlink()
    with pytest.raises(ConfigError, match="a folder that no grid began"):
        copied.run()


def test_a_baseline_that_was_killed_before_it_had_a_name_is_made_again(copied: Grid) -> None:
    run = copied.out / "cells" / NAMES[0]
    (run / "baselines" / "non-private" / "checkpoints").mkdir(parents=True)
    study = read_run(run).study
    run_baseline(
        "non-private",
        study,
        copied.sites,
        out=run,
        engine="inprocess",
        start=load_file(run / "checkpoints" / "initial.safetensors"),
        progress=Silent(),
        workers=Workers(1),
    )
    assert "non-private" in read_run(run).variants
