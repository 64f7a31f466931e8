"""Scores of segmentations: against values worked out by hand, and the rule for absent regions."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medfl.config.site import SiteData
from medfl.errors import ConfigError, DataError
from medfl.prediction.evaluation import (
    CASES,
    PATIENTS,
    PICTURE,
    SUMMARY,
    evaluate,
    write_evaluation,
)
from medfl.segmentation.lesions import LesionRule

SHAPE, SPACING = (20, 22, 18), (2.0, 2.0, 3.0)
DIAGONAL = math.hypot(40, 44, 54)


def box(*corner: int, size: int = 6, value: int = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    x, y, z = corner
    mask[x : x + size, y : y + size, z : z + size] = value
    return mask


def write(path: Path, mask: np.ndarray, *, spacing: tuple[float, ...] = SPACING) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([*spacing, 1.0])), path)


@pytest.fixture
def cohort(tmp_path: Path) -> SiteData:
    """Two timepoints of one patient, and another patient; images are not looked at."""
    for case in ("TCGA", "BraTS19_A_1_1", "BraTS19_A_1_2", "BraTS19_B_2_1")[1:]:
        folder = tmp_path / "images" / "HGG" / case
        folder.mkdir(parents=True)
        (folder / f"{case}_flair.nii.gz").touch()
    return SiteData(
        root=tmp_path / "images", layout="brats2019", label_scheme="brats", modalities=("t2f",)
    )


def masks(cohort: SiteData, predictions: Path, pairs: dict[str, tuple[np.ndarray, ...]]) -> None:
    for case, (truth, predicted) in pairs.items():
        write(cohort.root / "HGG" / case / f"{case}_seg.nii.gz", truth)
        write(predictions / "HGG" / case / f"{case}_seg.nii.gz", predicted)


def test_scores_are_those_worked_out_by_hand(cohort: SiteData, tmp_path: Path) -> None:
    masks(
        cohort,
        tmp_path / "out",
        {
            "BraTS19_A_1_1": (box(4, 4, 4, value=4), box(4, 4, 4, value=4)),
            # Moved by 3 of 6 voxels of 2 mm: half of each box overlaps.
            "BraTS19_A_1_2": (box(4, 4, 4, value=2), box(7, 4, 4, value=2)),
            "BraTS19_B_2_1": (box(4, 4, 4, value=2), np.zeros(SHAPE, np.uint8)),
        },
    )
    found = evaluate(tmp_path / "out", cohort)
    assert found.left_out == ()
    by_case = {(one.case, one.region): one for one in found.scores}
    same = by_case["BraTS19_A_1_1", "ET"]
    assert (same.dice, same.hd95_mm, same.surface_dice) == (1.0, 0.0, 1.0)
    # 216 voxels of 12 cubic millimetres.
    assert same.truth_ml == pytest.approx(2.592)
    moved = by_case["BraTS19_A_1_2", "WT"]
    assert moved.dice == pytest.approx(0.5)
    assert moved.hd95_mm == pytest.approx(6.0)
    assert 0 < moved.surface_dice < 1
    assert moved.truth_ml == moved.predicted_ml == pytest.approx(2.592)
    # Absent from both, and from one.
    absent = by_case["BraTS19_B_2_1", "ET"]
    assert (absent.dice, absent.hd95_mm, absent.surface_dice) == (1.0, 0.0, 1.0)
    missed = by_case["BraTS19_B_2_1", "WT"]
    assert (missed.dice, missed.surface_dice, missed.predicted_ml) == (0.0, 0.0, 0.0)
    assert missed.hd95_mm == pytest.approx(DIAGONAL)
    assert (missed.lesion_dice, missed.lesion_hd95_mm, missed.lesions_missed) == (0.0, 374.0, 1)


def test_every_lesion_counts_the_same(cohort: SiteData, tmp_path: Path) -> None:
    large, small, invented = box(1, 1, 1, size=8), box(15, 16, 12, size=3), box(1, 17, 1, size=2)
    masks(
        cohort,
        tmp_path / "out",
        {
            "BraTS19_A_1_1": (2 * (large | small), 2 * (large | invented)),
            "BraTS19_A_1_2": (2 * large, 2 * large),
            "BraTS19_B_2_1": (2 * large, 2 * large),
        },
    )
    progress: list[tuple[int, int]] = []
    found = evaluate(
        tmp_path / "out", cohort, regions=("WT",), on_case=lambda *step: progress.append(step)
    )
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    one = next(one for one in found.scores if one.case == "BraTS19_A_1_1")
    assert one.dice > 0.95
    assert one.lesion_dice == pytest.approx(1 / 3)
    assert one.lesion_hd95_mm == pytest.approx(2 * 374 / 3)
    assert (one.lesions_found, one.lesions_missed, one.lesions_false) == (1, 1, 1)
    patient = next(row for row in found.by_patient() if row["patient"] == "BraTS19_A_1")
    assert patient["lesion_dice"] == pytest.approx(2 / 3)
    (summary,) = found.summary()
    assert summary["lesion_dice"] == pytest.approx(5 / 6)
    assert summary["lesions_missed"] == pytest.approx(0.25)
    # The small one has 27 voxels of 12 cubic millimetres.
    rule = LesionRule(dilation_voxels=3, above_mm3=324)
    found = evaluate(tmp_path / "out", cohort, regions=("WT",), lesion_rule=rule)
    assert found.scores[0].lesion_dice == pytest.approx(1 / 2)


def test_a_patient_counts_once_however_many_cases(cohort: SiteData, tmp_path: Path) -> None:
    whole, empty = box(4, 4, 4, value=2), np.zeros(SHAPE, np.uint8)
    masks(
        cohort,
        tmp_path / "out",
        {
            "BraTS19_A_1_1": (whole, whole),
            "BraTS19_A_1_2": (whole, empty),
            "BraTS19_B_2_1": (whole, whole),
        },
    )
    found = evaluate(tmp_path / "out", cohort, regions=("WT",))
    rows = {row["patient"]: row for row in found.by_patient()}
    assert (rows["BraTS19_A_1"]["dice"], rows["BraTS19_A_1"]["cases"]) == (0.5, 2)
    (summary,) = found.summary()
    assert summary["dice"] == pytest.approx(0.75)
    assert summary["median_dice"] == pytest.approx(0.75)
    assert summary["patients"] == 2


def test_tables_and_picture_are_written_once(cohort: SiteData, tmp_path: Path) -> None:
    whole = box(4, 4, 4, value=4)
    names = ("BraTS19_A_1_1", "BraTS19_A_1_2", "BraTS19_B_2_1")
    masks(cohort, tmp_path / "out", dict.fromkeys(names, (whole, whole)))
    found = evaluate(tmp_path / "out", cohort)
    write_evaluation(found, tmp_path / "scores")
    with (tmp_path / "scores" / CASES).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["case"] for row in rows} == set(names)
    assert float(rows[0]["dice"]) == 1.0
    assert len((tmp_path / "scores" / PATIENTS).read_text().splitlines()) == 7
    assert float(rows[0]["lesion_dice"]) == 1.0
    assert float(rows[0]["lesion_hd95_mm"]) == 0.0
    assert (rows[0]["lesions_found"], rows[0]["lesions_missed"]) == ("1", "0")
    summary = json.loads((tmp_path / "scores" / SUMMARY).read_text())
    assert summary["settings"] == {
        "surface_dice_tolerance_mm": 1.0,
        "lesion_dilation_voxels": 3,
        "lesions_above_mm3": 50.0,
        "lesion_penalty_mm": 374.0,
    }
    assert (summary["cases"], summary["cases_left_out"]) == (3, 0)
    assert [row["region"] for row in summary["regions"]] == ["TC", "WT", "ET"]
    assert all(row["lesion_dice"] == 1.0 for row in summary["regions"])
    assert (tmp_path / "scores" / PICTURE).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="expected a new file"):
        write_evaluation(found, tmp_path / "scores")


def test_what_cannot_be_scored_is_left_out_and_named(cohort: SiteData, tmp_path: Path) -> None:
    whole = box(4, 4, 4, value=4)
    names = ("BraTS19_A_1_1", "BraTS19_A_1_2", "BraTS19_B_2_1")
    masks(cohort, tmp_path / "out", dict.fromkeys(names, (whole, whole)))
    (tmp_path / "out" / "HGG" / names[0] / f"{names[0]}_seg.nii.gz").unlink()
    write(
        tmp_path / "out" / "HGG" / names[1] / f"{names[1]}_seg.nii.gz", whole, spacing=(2, 2, 2.5)
    )
    found = evaluate(tmp_path / "out", cohort)
    assert {one.case for one in found.scores} == {names[2]}
    reasons = dict(found.left_out)
    assert "expected a mask, found none" in reasons[names[0]]
    assert "expected the grid of" in reasons[names[1]]
    write(
        tmp_path / "out" / "HGG" / names[2] / f"{names[2]}_seg.nii.gz",
        np.where(whole, 3, 0).astype(np.uint8),
    )
    with pytest.raises(DataError, match="expected masks of the cohort, found none"):
        evaluate(tmp_path / "out", cohort)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataError, match="expected masks of the cohort"):
        evaluate(tmp_path / "out", cohort)


def test_a_mask_that_is_none_is_left_out_and_named(cohort: SiteData, tmp_path: Path) -> None:
    whole = box(4, 4, 4, value=4)
    names = ("BraTS19_A_1_1", "BraTS19_A_1_2", "BraTS19_B_2_1")
    masks(cohort, tmp_path / "out", dict.fromkeys(names, (whole, whole)))
    broken = np.full(SHAPE, np.nan, np.float32)
    write(tmp_path / "out" / "HGG" / names[0] / f"{names[0]}_seg.nii.gz", broken)
    write(tmp_path / "out" / "HGG" / names[1] / f"{names[1]}_seg.nii.gz", whole[:-1])
    found = evaluate(tmp_path / "out", cohort)
    assert {one.case for one in found.scores} == {names[2]}
    reasons = dict(found.left_out)
    assert "expected" in reasons[names[0]]
    assert "nan" in reasons[names[0]].lower()
    assert "expected the grid of" in reasons[names[1]]


def test_a_region_that_the_scheme_lacks_is_refused(cohort: SiteData, tmp_path: Path) -> None:
    data = cohort.model_copy(update={"label_scheme": "lgg"})
    with pytest.raises(ConfigError, match=r"regions out of \['WT'\]"):
        evaluate(tmp_path / "out", data, regions=("ET",))
