"""The first model: the same for the same study, and made of nobody's data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from medfl.phantom.hospitals import write_hospitals
from medfl.study.pictures import write_pictures
from medfl.study.pretraining import initial_weights, synthetic_patients

SYNTHETIC: dict[str, Any] = {
    "shape": [20, 20, 16],
    "spacing": [9.0, 9.0, 10.0],
    "skull_stripped": True,
    "seed": 500,
    "pretraining_patients": 2,
    "pretraining_steps": 3,
}


def weights(study: Any) -> dict[str, torch.Tensor]:
    return initial_weights(study, threads=1, advance=lambda *_: None)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_random_weights_follow_from_the_studys_seed(federation: Any) -> None:
    torch.manual_seed(5)
    first = weights(federation.study())
    torch.manual_seed(6)
    assert same(first, weights(federation.study()))
    assert not same(first, weights(federation.study(seed=1)))


@pytest.mark.slow
def test_pretraining_repeats_bit_for_bit_and_leaves_nothing_behind(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(federation.scratch))
    study = federation.study(synthetic=SYNTHETIC)
    told: list[tuple[int, int]] = []
    first = initial_weights(study, threads=1, advance=lambda *work: told.append(work))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert same(first, weights(study))
    assert not same(first, weights(federation.study()))
    assert not same(first, weights(federation.study(synthetic={**SYNTHETIC, "seed": 501})))
    assert list(federation.scratch.glob("medfl-*")) == []


def test_a_study_says_how_much_its_synthetic_patients_differ(federation: Any) -> None:
    drawn = {}
    for variety in ("narrow", "wide", "random"):
        study = federation.study(synthetic={**SYNTHETIC, "variety": variety})
        folder = federation.scratch / variety
        synthetic_patients(study, study.synthetic, count=2, folder=folder)
        drawn[variety] = {image(path) for path in folder.rglob("*_flair.nii.gz")}
    assert len(drawn["wide"] | drawn["narrow"] | drawn["random"]) == 6


def test_synthetic_patients_are_no_patients_of_a_synthetic_hospital(federation: Any) -> None:
    study = federation.study(synthetic={**SYNTHETIC, "seed": 7})
    assert study.synthetic is not None
    own = synthetic_patients(study, study.synthetic, count=2, folder=federation.scratch / "own")
    files = write_hospitals(
        federation.scratch / "hospitals",
        patients=(2, 2, 2, 2),
        shape=(20, 20, 16),
        spacing=(9.0, 9.0, 10.0),
        skull_stripped=True,
        seed=7,
        on_patient=lambda: None,
    )
    images = {image(path) for path in (federation.scratch / "own").rglob("*_flair.nii.gz")}
    others = {image(path) for file in files for path in file.parent.rglob("*_flair.nii.gz")}
    assert len(own) == len(images) == 2
    assert len(others) == 8
    assert not images & others


def image(path: Path) -> bytes:
    import nibabel
    import numpy as np

    return np.asanyarray(nibabel.load(path).dataobj).tobytes()


def test_pictures_need_a_synthetic_section(federation: Any, tmp_path: Path) -> None:
    study = federation.study(evaluation={"pictures": 2})
    write_pictures(study, model=tmp_path / "none.safetensors", out=tmp_path / "predictions")
    assert not (tmp_path / "predictions").exists()
