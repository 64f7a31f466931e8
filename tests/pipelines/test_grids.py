"""The grids that are shipped: each names files that are there, and every cell of it is a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.config import load_site, load_study
from medfl.config.study_grid import load_study_grid
from medfl.phantom.hospitals import write_hospitals
from medfl.study.cells import Cell, cells_of
from tests.pipelines.test_benchmark import PIPELINES

GRIDS = sorted((PIPELINES / "grids").glob("*.toml"))
DEMO_HOSPITALS = Path("runs") / "demo" / "hospitals"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `medfl phantom runs/demo/hospitals` writes, but small."""
    folder = tmp_path_factory.mktemp("demo") / "hospitals"
    write_hospitals(
        folder,
        patients=(1, 1, 1, 1),
        shape=(16, 16, 16),
        spacing=(11.0, 11.0, 11.0),
        skull_stripped=True,
        seed=1,
        on_patient=lambda: None,
    )
    return folder


def cells(path: Path, hospitals: Path) -> list[Cell]:
    grid = load_study_grid(path)
    sites = []
    for site in grid.sites:
        is_demo = site.resolve().parent == PIPELINES.parent / DEMO_HOSPITALS
        sites.append(load_site(hospitals / site.name if is_demo else site))
    return cells_of(grid, load_study(grid.study), sites, begun=lambda _: ())


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_cell_is_a_study_that_its_sites_may_run(
    path: Path, hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFL_REAL_DATA", str(hospitals))
    found = cells(path, hospitals)
    assert len(found) == (36 if "epsilon" in path.stem else 6)
    for cell in found:
        assert len(cell.sites) >= cell.study.aggregation.min_sites
        assert all(cell.study.privacy.trust in site.privacy.trust for site in cell.sites)
    assert len({cell.name for cell in found}) == len(found)


def test_a_grid_is_shipped_for_each_question_on_both_sets_of_hospitals() -> None:
    assert {path.stem for path in GRIDS} == {
        f"{hospitals}_{question}"
        for hospitals in ("demo", "lgg")
        for question in ("epsilon", "who_gains")
    }


def test_without_a_pretraining_the_whole_network_is_trained(
    hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFL_REAL_DATA", str(hospitals))
    found = [
        cell
        for cell in cells(PIPELINES / "grids" / "lgg_epsilon.toml", hospitals)
        if cell.variant == "no-pretraining"
    ]
    assert len(found) == 18
    assert all(cell.study.synthetic is None for cell in found)
    assert all(cell.study.training.trainable == ("*",) for cell in found)


def test_the_real_hospitals_have_the_patients_that_the_documents_say(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFL_REAL_DATA", str(real_data))
    grid = load_study_grid(PIPELINES / "grids" / "lgg_who_gains.toml")
    assert [load_site(path).declared_patients for path in grid.sites] == [27, 21, 10, 9]
