"""A hospital with sessions under several roots, from its first check to scored masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site

SITE = """
name = "north"
purpose = "hospital"
declared_patients = 2
weight = 2.0
state = "{state}"
threads = 1

[data]
root = ["{one}", "{other}"]
layout = "custom"
label_scheme = "brats"
modalities = ["t1n", "t1c", "t2w", "t2f"]

[data.custom]
mask = "{{patient}}/{{session}}/seg.nii.gz"

[data.custom.images]
t1n = "{{patient}}/{{session}}/t1.nii.gz"
t1c = "{{patient}}/{{session}}/t1ce.nii.gz"
t2w = "{{patient}}/{{session}}/t2.nii.gz"
t2f = "{{patient}}/{{session}}/flair.nii.gz"

[privacy]
epsilon = 8.0
"""


@pytest.fixture
def north(synthetic_patients: Path, tmp_path: Path) -> Path:
    """Two people with two sessions each; one of them under both roots."""
    places = ("one/P1/week1", "one/P1/week2", "one/P2/week1", "other/P2/week2")
    for source, place in zip(sorted((synthetic_patients / "north").iterdir()), places, strict=True):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for file in source.iterdir():
            shutil.copy(file, folder / file.name.removeprefix(f"{source.name}_"))
    path = tmp_path / "site.toml"
    text = SITE.format(
        state=tmp_path / "state" / "north", one=tmp_path / "one", other=tmp_path / "other"
    )
    path.write_text(text)
    return path


def test_a_hospital_with_sessions_is_checked_prepared_and_tried(
    medfl: Any, north: Path, study: Path
) -> None:
    assert medfl("site", "init", load_site(north).state).code == 0
    assert medfl("ledger", "init", north, "--yes").code == 0
    ended = medfl("check", north, "--study", study, "--json")
    assert ended.code == 0, ended.out
    notes = [f for f in json.loads(ended.out) if f["rule"].startswith("one case a patient")]
    assert {f["value"] for f in notes} == {"P1_week1, P1_week2", "P2_week1, P2_week2"}
    assert medfl("cache", "fill", north, study).code == 0


def test_a_second_site_file_for_the_same_people_gets_no_second_budget(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    assert medfl("site", "init", load_site(north).state).code == 0
    assert medfl("ledger", "init", north, "--yes").code == 0
    again = tmp_path / "again.toml"
    # The other root alone, under other names.
    (tmp_path / "other/P2").rename(tmp_path / "other/X9")
    text = north.read_text().replace(f'"{tmp_path / "one"}", ', "")
    text = text.replace('name = "north"', 'name = "again"').replace("state/north", "state/again")
    again.write_text(text.replace("declared_patients = 2", "declared_patients = 1"))
    assert medfl("site", "init", load_site(again).state).code == 0
    ended = medfl("ledger", "init", again, "--yes")
    assert ended.code != 0
    assert "patient" in ended.err
