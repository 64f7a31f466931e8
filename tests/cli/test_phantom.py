"""`medfl phantom`: as many hospitals as asked for, for a simulation or a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medfl.config import load_site
from medfl.data.layouts.survey import read_cohort

SMALL = ("--patients", 1, 2, 1, 1, "--shape", 16, 16, 16, "--spacing", 10, 10, 10)


def written(medfl: Any, out: Path, *options: object) -> list[Path]:
    ended = medfl("phantom", out, *SMALL, *options)
    assert ended.code == 0, ended.err
    return [Path(line) for line in ended.out.splitlines()]


def test_there_are_four_for_a_simulation_if_nothing_is_said(medfl: Any, tmp_path: Path) -> None:
    files = written(medfl, tmp_path / "out")
    assert [file.stem for file in files] == ["north", "east", "south", "west"]
    assert {load_site(file).purpose for file in files} == {"open-data"}


def test_further_hospitals_take_turns_with_the_numbers_of_patients(
    medfl: Any, tmp_path: Path
) -> None:
    files = written(medfl, tmp_path / "out", "--hospitals", 6, "--purpose", "hospital")
    sites = [load_site(file) for file in files]
    assert [site.declared_patients for site in sites] == [1, 2, 1, 1, 1, 2]
    assert {site.purpose for site in sites} == {"hospital"}
    assert len({site.state for site in sites}) == 6


def test_patients_of_deployments_are_new_ones_unless_a_seed_says_otherwise(
    medfl: Any, tmp_path: Path
) -> None:
    def names(folder: str, *options: object) -> set[str]:
        (file,) = written(medfl, tmp_path / folder, "--hospitals", 1, *options)
        return {patient.patient_id for patient in read_cohort(load_site(file).data).patients}

    deployed = ("--purpose", "hospital")
    assert not names("one", *deployed) & names("two", *deployed)
    assert names("three", *deployed, "--seed", 3) == names("four", *deployed, "--seed", 3)
    assert names("five") == names("six")
