"""What `medfl evaluate` prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

Medfl = Callable[..., Any]


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and images: one case with one lesion found, one missed and one made up."""
    case = "BraTS2021_00001"
    truth, predicted = np.zeros((2, 30, 30, 30), np.uint8)
    truth[2:10, 2:10, 2:10] = predicted[2:10, 2:10, 2:10] = 4
    truth[20:24, 20:24, 20:24] = 4
    predicted[2:5, 20:23, 20:23] = 4
    for root, mask in (("images", truth), ("masks", predicted)):
        folder = tmp_path / root / case
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / f"{case}_seg.nii.gz")
    for modality in ("t1", "t1ce", "t2", "flair"):
        (tmp_path / "images" / case / f"{case}_{modality}.nii.gz").touch()
    return tmp_path / "masks", tmp_path / "images"


def test_lesion_wise_scores_are_printed_and_written_with_their_settings(
    cohort: tuple[Path, Path], tmp_path: Path, medfl: Medfl
) -> None:
    ended = medfl("evaluate", *cohort, "--region", "ET", "--out", tmp_path / "scores")
    assert ended.code == 0
    assert "dilation 3 voxels, lesions above 50 mm³" in " ".join(ended.out.split())
    rows = [line.split() for line in ended.out.splitlines() if "ET" in line]
    assert rows[0][5] == f"{2 * 512 / (576 + 539):.3f}"  # of the whole
    lesions = [cell for cell in rows[1] if cell != "│"]
    assert lesions == ["ET", "1", "0.333", "249.3", "1.0", "1.0", "1.0"]
    with (tmp_path / "scores" / "patients.csv").open(newline="") as file:
        (patient,) = csv.DictReader(file)
    assert float(patient["lesion_dice"]) == pytest.approx(1 / 3, abs=1e-6)
    assert float(patient["lesion_hd95_mm"]) == pytest.approx(2 * 374 / 3, abs=1e-3)
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["cases"] == 1


def test_settings_of_another_tumour_can_be_chosen(cohort: tuple[Path, Path], medfl: Medfl) -> None:
    ended = medfl(
        "evaluate", *cohort, "--region", "ET", "--lesion-dilation", 1, "--lesions-above-mm3", 64
    )
    assert "dilation 1 voxel," in " ".join(ended.out.split())
    rows = [line.split() for line in ended.out.splitlines() if "ET" in line]
    assert [cell for cell in rows[1] if cell != "│"][-3:] == ["1.0", "0.0", "1.0"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--lesion-dilation", "0"), ("--lesion-dilation", "1.5"), ("--lesions-above-mm3", "-1")],
)
def test_settings_that_are_none_are_refused(
    cohort: tuple[Path, Path], medfl: Medfl, option: str, value: str
) -> None:
    ended = medfl("evaluate", *cohort, option, value)
    assert ended.code == 2
    assert option in ended.err
    assert "Traceback" not in ended.err
