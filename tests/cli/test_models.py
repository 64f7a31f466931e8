"""A run, a hospital's folder of one, or a file: each stands for the model that a user means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medfl.cli.models import model_meant
from medfl.errors import ModelError


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_run_stands_for_its_final_model(tmp_path: Path) -> None:
    touched(tmp_path / "run.json")
    touched(tmp_path / "checkpoints" / "round-0002.safetensors")
    final = touched(tmp_path / "checkpoints" / "final.safetensors")
    assert model_meant(tmp_path) == final
    assert model_meant(final) == final


def test_a_hospital_s_folder_of_a_run_stands_for_the_federated_model(tmp_path: Path) -> None:
    touched(tmp_path / "own.safetensors")
    touched(tmp_path / "start.safetensors")
    federated = touched(tmp_path / "federated.safetensors")
    assert model_meant(tmp_path) == federated


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    touched(tmp_path / "run.json")
    touched(tmp_path / "checkpoints" / "round-0002.safetensors")
    with pytest.raises(ModelError, match="expected a finished run"):
        model_meant(tmp_path)


def test_a_folder_that_is_no_run_is_refused(medfl: Any, tmp_path: Path) -> None:
    ended = medfl("predict", tmp_path, "--model", tmp_path, "-o", tmp_path / "out")
    ended.refused(2, tmp_path, "checkpoints/final.safetensors")


def test_a_site_s_cohort_goes_into_a_folder(medfl: Any, hospital_file: Any, tmp_path: Path) -> None:
    site = hospital_file("north")
    ended = medfl("predict", site, "--model", tmp_path, "-o", tmp_path / "mask.nii.gz")
    ended.refused(2, "--out", "expected a folder", "mask.nii.gz")
