"""The report says what a study's settings were chosen on, and whether that is paid for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medfl.config.tuning import StudyTuning
from medfl.reporting.uses_table import uses_table
from medfl.runs.results import read_run

RunBuilder = Callable[..., Path]


@pytest.mark.parametrize(
    ("tuning", "purpose", "covered", "why"),
    [
        (None, "hospital", "not stated", "does not say"),
        (StudyTuning(on="public"), "hospital", "not needed", "synthetic patients or none"),
        (
            StudyTuning(on="public", collections=("BraTS-2021",)),
            "open-data",
            "no",
            "public patients of BraTS-2021",
        ),
        (StudyTuning(on="sites", runs=12), "hospital", "in the lifetime ε", "12 runs"),
        (StudyTuning(on="sites", runs=12), "open-data", "no", "12 runs"),
    ],
)
def test_each_choice_is_named_with_its_cost(
    build_run: RunBuilder, tuning: StudyTuning | None, purpose: str, covered: str, why: str
) -> None:
    run = read_run(build_run(purpose=purpose, metrics=purpose == "open-data"))
    run = replace(run, study=run.study.model_copy(update={"tuning": tuning}))
    (row,) = [row for row in uses_table(run).rows if row[0] == "Choice of the settings"]
    assert row[1] == covered
    assert why in row[2]
