"""`medfl study run`: a grid file in, a table and a report out, and what it says on the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medfl.cli.study_grid import LOCK, duration
from medfl.deployment.lock import exclusive
from medfl.runs.grid_table import TABLE
from tests.cli.conftest import Ended

Medfl = Callable[..., Ended]

GRID = """
id = "tiny-grid"
study = "study.toml"
sites = ["{site}"]
seeds = [1]
epsilons = [8, 3]
baselines = ["initial-only"]
"""


@pytest.fixture
def grid(study: Path, synthetic_patients: Path) -> Path:
    """The file of a grid over one hospital of open data."""
    assert study.name == "study.toml"
    path = study.with_name("grid.toml")
    path.write_text(GRID.format(site=synthetic_patients / "north.toml"))
    return path


@pytest.mark.slow
def test_every_run_is_named_with_the_time_that_is_left(
    medfl: Medfl, grid: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = medfl("study", "run", grid, "--out", out, "--jobs", 1)
    assert ended.code == 0, ended.err
    said = [line for line in ended.err.splitlines() if re.match(r"(run )?\d+ ", line)]
    said += [line for line in ended.err.splitlines() if line.startswith("run ")]
    assert said[0] == "2 runs, 0 of them finished"
    assert said[1] == "run 1 of 2: local-epsilon-8-seed-1"
    assert re.fullmatch(r"run 2 of 2: local-epsilon-3-seed-1, about \d+ (s|min) left", said[2])
    assert "\x1b" not in ended.err
    assert f"Report: {out / 'report.html'}" in ended.out.replace("\n", "")
    assert (out / TABLE).exists()
    assert (out / "cells" / "local-epsilon-3-seed-1" / "summary.json").exists()
    again = medfl("study", "run", grid, "--out", out, "--jobs", 1)
    assert "2 runs, 2 of them finished" in again.err
    assert "run 1 of 2" not in again.err
    report = medfl("report", out, "--language", "zh")
    assert report.code == 0, report.err
    assert 'lang="zh-Hans"' in (out / "report.html").read_text()


def test_a_grid_that_another_process_works_on_is_left_alone(
    medfl: Medfl, grid: Path, tmp_path: Path
) -> None:
    with exclusive(tmp_path / LOCK, noun="a test"):
        medfl("study", "run", grid, "--out", tmp_path).refused(1, tmp_path, "no other process")


def test_a_mistake_is_told_before_anything_runs(
    medfl: Medfl, grid: Path, hospital_file: Callable[[str], Path], tmp_path: Path
) -> None:
    text = grid.read_text()
    out = tmp_path / "out"
    for old, new, told in (
        ("[8, 3]", "[8, 8]", "key epsilons: expected each of them once"),
        ("study.toml", "nowhere.toml", "nowhere.toml: expected a readable file"),
        ("seeds", 'trust = ["hybrid"]\nseeds', "cell hybrid-epsilon-8-seed-1 of the grid"),
        (re.findall(r'sites = \["(.*)"\]', text)[0], str(hospital_file("north")), "'open-data'"),
    ):
        grid.write_text(text.replace(old, new))
        medfl("study", "run", grid, "--out", out).refused(2, told)
        assert not list(out.glob("cells/*/"))
    medfl("report", out).refused(1, "study.json")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "1 s"), (59, "59 s"), (61, "2 min"), (3599, "1 h 0 min"), (7300, "2 h 2 min")],
)
def test_a_time_is_rounded_up(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
