"""Who gains: from the tables of several runs to one table and one picture."""

from __future__ import annotations

import csv
import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medfl.config import load_site, load_study
from medfl.runs.results import RunResults, read_run

PIPELINES = Path(__file__).parents[2] / "pipelines"
GAINS = {"North": 0.05, "South": 0.02, "East": -0.01, "West": 0.03}
FINAL = "10"  # the round of made-up runs


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module("who_gains")


def compared(folder: Path, *, gains: Mapping[str, float], shift: float = 0.0) -> RunResults:
    """A made-up run with both home baselines: the start's scores, moved by `shift` and a gain."""
    table = folder / "metrics.csv"
    lines = table.read_text().splitlines()
    columns = lines[0].split(",")
    for line in [line for line in lines if line.startswith("initial-only,")]:
        values = dict(zip(columns, line.split(","), strict=True))
        alone = float(values["dice"]) + shift
        for variant, dice in (("alone", alone), ("adapted", alone + gains[values["site"]])):
            row = values | {"variant": variant, "round": FINAL, "dice": str(dice)}
            lines.append(",".join(row.values()))
    table.write_text("\n".join(lines) + "\n")
    return read_run(folder)


def test_gains_are_means_over_patients_and_seeds(
    pipeline: ModuleType, build_run: Callable[..., Path], tmp_path: Path
) -> None:
    first = compared(build_run(pictures=0), gains=GAINS)
    other = tmp_path / "other"
    shutil.copytree(first.folder, other)
    second = compared(
        without_home(other), gains={name: gain + 0.02 for name, gain in GAINS.items()}, shift=0.01
    )
    findings = pipeline.findings_of([first, second], [first, second], epsilon=8.0)
    whole = {each.site: each for each in findings if each.region == "WT"}
    assert set(whole) == {*GAINS, pipeline.ALL}
    for site, gain in GAINS.items():
        found = whole[site].gain
        assert found.value == pytest.approx(gain + 0.01)
        # Two seeds, each of which may be drawn twice.
        assert (found.low, found.high) == pytest.approx((gain, gain + 0.02))
        joined, alone = (whole[site].dice[column].value for column in ("joined", "alone"))
        assert joined - alone == pytest.approx(gain + 0.01)
    patients = {site: whole[site].gain.patients for site in GAINS}
    total = sum(patients.values())
    assert whole[pipeline.ALL].gain.patients == total
    expected = sum((gain + 0.01) * patients[site] for site, gain in GAINS.items()) / total
    assert whole[pipeline.ALL].gain.value == pytest.approx(expected)
    assert [each.site for each in pipeline._worst(findings)] == ["East"] * 3


def without_home(folder: Path) -> Path:
    """The same run before its home baselines."""
    table = folder / "metrics.csv"
    kept = [
        line
        for line in table.read_text().splitlines()
        if not line.startswith(("alone,", "adapted,"))
    ]
    table.write_text("\n".join(kept) + "\n")
    return folder


@pytest.mark.slow
def test_one_command_runs_each_cell_once_and_leaves_a_table_and_a_picture(
    pipeline: ModuleType, federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epsilons and two seeds on tiny hospitals, from files as users have them."""
    study = federation.study(training={"rounds": 1}, privacy={"noise": "operating-system"})
    sites = {}
    for name in ("east", "south"):
        changes = {"privacy": {"share_metrics": True, "allow_baselines": True}}
        sites[tmp_path / f"{name}.toml"] = federation.site(
            name, **changes, adapt={"steps": 1, "folds": 2}
        )
    monkeypatch.setattr(pipeline, "load_study", lambda _: study)
    monkeypatch.setattr(pipeline, "load_site", sites.__getitem__)
    ran = []
    run = pipeline._run

    def noted(cell: Any, *arguments: Any, **named: Any) -> None:
        ran.append((cell.privacy.epsilon, cell.seed, set(cell.evaluation.baselines)))
        run(cell, *arguments, **named)

    monkeypatch.setattr(pipeline, "_run", noted)
    out = tmp_path / "out"
    options = ["--epsilon", "8", "--epsilon", "3", "--seed", "1", "--seed", "2", "--jobs", "1"]
    options += [option for file in sites for option in ("--site", str(file))]
    ended = CliRunner().invoke(pipeline.app, [*options, "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    once = {*pipeline.OF_A_SEED, "adapted"}
    assert ran == [(8.0, 1, once), (3.0, 1, {"adapted"}), (8.0, 2, once), (3.0, 2, {"adapted"})]
    with (out / "who_gains.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3  # epsilons, regions, two sites and all
    for row in rows:
        assert float(row["gain"]) == pytest.approx(
            float(row["joined"]) - float(row["alone"]), abs=2e-4
        )
        assert float(row["gain_low"]) <= float(row["gain"]) <= float(row["gain_high"])
        assert np.isfinite([float(row[name]) for name in ("start", "federated", "pooled")]).all()
    of_both = [[row["alone"] for row in rows if row["epsilon"] == one] for one in ("8", "3")]
    assert of_both[0] == of_both[1]
    assert (out / "who_gains.png").stat().st_size > 5_000
    # Nothing runs again, and the table is the same.
    before = (out / "who_gains.csv").read_bytes()
    again = CliRunner().invoke(pipeline.app, [*options, "--out", str(out)])
    assert again.exit_code == 0, again.output
    assert len(ran) == 4
    assert (out / "who_gains.csv").read_bytes() == before
    # What noise does not change is taken from where it is, also for one of the cells alone.
    one_cell = [*options[2:4], *options[6:8], *options[8:]]
    alone = CliRunner().invoke(pipeline.app, [*one_cell, "--out", str(out)])
    assert alone.exit_code == 0, alone.output
    assert len(ran) == 4


def test_without_options_it_is_the_real_hospitals(
    pipeline: ModuleType, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFL_REAL_DATA", str(real_data))
    study = load_study(pipeline.CONFIGS / "lgg" / "study.toml")
    sites = [load_site(pipeline.CONFIGS / "lgg" / f"{name}.toml") for name in pipeline.LGG_SITES]
    assert study.id == "lgg"
    assert [site.declared_patients for site in sites] == [27, 21, 10, 9]
