"""A region that no model finds is said in words, and its scores do not pass for a result."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest

from medfl.reporting import figures
from medfl.reporting.report import render
from medfl.reporting.texts import Texts
from medfl.reporting.unfound import found_regions, unfound_regions
from medfl.runs.results import read_run

RunBuilder = Callable[..., Path]

WITHOUT = 0.25  # of the patients have no such region


def lose(folder: Path, *regions: str, but: str = "") -> Path:
    """Let no model find a region, except for one variant and patient."""
    table = folder / "metrics.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    patients = sorted({(row["site"], row["patient"]) for row in rows})
    empty = set(patients[: round(WITHOUT * len(patients))])
    for row in rows:
        if row["region"] in regions:
            row["dice"] = "1" if (row["site"], row["patient"]) in empty else "0"
            if row["variant"] == but and (row["site"], row["patient"]) == patients[-1]:
                row["dice"] = "0.01"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_a_score_that_is_a_share_of_patients_is_told_as_one(build_run: RunBuilder) -> None:
    run = read_run(lose(build_run(pictures=0), "ET"))
    assert unfound_regions(run) == ("ET",)
    page = re.sub(r"\s+", " ", render(run, {}))
    said = (
        "No model found any enhancing tumour in any patient. Its mean Dice of 0.25 is merely the "
        "share of patients in whom neither the truth nor the prediction has any"
    )
    assert page.count(said) == 2  # beside the result, and beside the scores
    assert "没有任何模型在任何患者身上找到增强肿瘤。其平均 Dice 系数 0.25" in render(
        run, {}, Texts("zh")
    )


def test_it_is_left_out_of_the_figures(build_run: RunBuilder) -> None:
    run = read_run(lose(build_run(pictures=0), "ET"))
    with mpl.rc_context(figures.STYLE):
        (bars,) = figures.dice_by_variant(run).axes
        assert [label.get_text() for label in bars.get_xticklabels()] == [
            "Tumour core (TC)",
            "Whole tumour (WT)",
        ]
        for draw in (figures.dice_by_round, figures.dice_by_site):
            titles = [panel.get_title("left") for panel in draw(run).axes]
            assert titles == ["Tumour core (TC)", "Whole tumour (WT)"]


@pytest.mark.parametrize("variant", ["federated", "non-private"])
def test_one_voxel_in_one_patient_is_a_find(build_run: RunBuilder, variant: str) -> None:
    run = read_run(lose(build_run(pictures=0), "ET", but=variant))
    assert unfound_regions(run) == ()
    assert "No model found" not in render(run, {})


def test_a_run_that_finds_nothing_has_no_figure_of_it(build_run: RunBuilder) -> None:
    run = read_run(lose(build_run(pictures=0), "TC", "WT", "ET"))
    assert found_regions(run) == ()
    assert set(figures.draw_figures(run)) == {"epsilon_by_round"}
    assert render(run, {}).count("No model found any") == 2 * 3
