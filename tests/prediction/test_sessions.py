"""Masks of patients with several examinations, and of several roots: each found again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medfl.config.site import SiteData
from medfl.prediction.cohort import predict_cohort
from medfl.prediction.evaluation import evaluate
from medfl.prediction.predictor import Predictor


def add(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, ending in (("T1C", "t1ce"), ("FLAIR", "flair"), ("tumour", "seg")):
        shutil.copy(source / f"{source.name}_{ending}.nii.gz", folder / f"{name}.nii.gz")


def custom(*roots: Path, mask: str = "{patient}/{session}/tumour", person: str = "") -> SiteData:
    return SiteData(
        root=roots,
        layout="custom",
        label_scheme="brats",
        modalities=("t1c", "t2f"),
        patient=person,
        custom={
            "images": {"t1c": "{patient}/{session}/T1C", "t2f": "{patient}/{session}/FLAIR"},
            "mask": mask,
        },
    )


@pytest.fixture
def two(patients: Path, tmp_path: Path) -> tuple[Path, Path]:
    sources = sorted(patients.iterdir())
    one, other = tmp_path / "one", tmp_path / "other"
    add(sources[0], one / "P1/week1")
    add(sources[1], one / "P1/week2")
    add(sources[2], other / "P1/week3")
    return one, other


@pytest.mark.parametrize(
    ("mask", "person", "written"),
    [
        ("{patient}/{session}/tumour", "", "P1/{}/tumour"),
        ("{patient}/{session}/*", "", "P1/{}/medfl"),
        ("{patient}/{session}/tum*", "", "P1/{}/tummedfl"),
        # Who the person is does not change where a file lies.
        ("{patient}/{session}/tumour", r"(?P<patient>[A-Z])\d_.*", "P1/{}/tumour"),
    ],
)
def test_every_session_of_every_root_gets_a_mask_that_is_found_again(
    mask: str, person: str, written: str, two: tuple[Path, Path], model: Path, tmp_path: Path
) -> None:
    data = custom(*two, mask=mask, person=person)
    out = tmp_path / "out"
    if "*" in mask.split("/")[-1][:1]:  # the images would be masks, too: nothing to score against
        for root in two:
            for file in root.rglob("tumour.nii.gz"):
                file.unlink()
    assert predict_cohort(Predictor(model), data, out=out) == []
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.nii.gz"))
    assert found == [f"{written.format(week)}.nii.gz" for week in ("week1", "week2", "week3")]
    if mask != "{patient}/{session}/*":
        found_scores = evaluate(out, data).scores
        assert {score.case for score in found_scores} == {"P1_week1", "P1_week2", "P1_week3"}
        assert {score.patient for score in found_scores} == {"P" if person else "P1"}


def test_a_case_that_is_doubled_or_empty_does_not_stop_the_others(
    two: tuple[Path, Path], model: Path, tmp_path: Path
) -> None:
    shutil.copytree(two[0] / "P1/week1", two[1] / "P1/week1")
    (two[0] / "P2/week1").mkdir(parents=True)
    failed = predict_cohort(Predictor(model), custom(*two), out=tmp_path / "out")
    assert sorted(one.case_id for one in failed) == ["P1_week1", "P2_week1"]
    written = sorted(path.parent.name for path in (tmp_path / "out").rglob("*.nii.gz"))
    assert written == ["week2", "week3"]


def test_halves_of_one_case_under_two_roots_are_not_segmented_as_one(
    two: tuple[Path, Path], model: Path, tmp_path: Path
) -> None:
    (two[1] / "P1/week1").mkdir()
    (two[0] / "P1/week1/FLAIR.nii.gz").rename(two[1] / "P1/week1/FLAIR.nii.gz")
    failed = predict_cohort(Predictor(model), custom(*two), out=tmp_path / "out")
    assert [one.case_id for one in failed] == ["P1_week1"]
