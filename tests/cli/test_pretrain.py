"""`medfl pretrain`: a public model, the line that a study takes it by, and one sentence if not."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medfl.config import load_study
from medfl.study.simulation import prepare_folder
from medfl.study.starting_point import first_weights

Medfl = Callable[..., Any]

STEPS, NO_STEPS = "pretraining_steps = 2", "pretraining_steps = 0"


@pytest.fixture
def study(pretraining_study: str, tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(pretraining_study)
    return path


def test_the_printed_line_makes_the_study_start_from_the_model(
    medfl: Medfl, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models" / "pretrained.safetensors"
    ended = medfl("pretrain", study, "-o", out)
    assert ended.code == 0, ended.err
    (line,) = re.findall(r"^ *(start = .*)$", ended.out, flags=re.MULTILINE)
    assert 'file = "models/pretrained.safetensors"' in line
    assert hashlib.sha256(out.read_bytes()).hexdigest() in line
    assert list(out.parent.iterdir()) == [out]
    study.write_text(study.read_text() + line + "\n")
    started = load_study(study)
    prepare_folder(tmp_path / "run", study=started, resume=False)
    found = first_weights(started, out=tmp_path / "run", threads=1, advance=lambda *_: None)
    written = load_file(out)
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in found)


@pytest.mark.slow
def test_the_model_segments_patients(
    medfl: Medfl, study: Path, synthetic_patients: Path, tmp_path: Path
) -> None:
    model, masks = tmp_path / "pretrained.safetensors", tmp_path / "masks"
    assert medfl("pretrain", study, "-o", model).code == 0
    ended = medfl("predict", synthetic_patients / "east", "--model", model, "-o", masks)
    assert ended.code == 0, ended.err
    assert len(list(masks.rglob("*.nii.gz"))) == 4


@pytest.mark.parametrize(
    ("spoilt", "found"),
    [
        (lambda text: text.partition("[synthetic]")[0], "found no such section"),
        (lambda text: text.replace(STEPS, NO_STEPS), "found 0"),
    ],
    ids=["no section", "no steps"],
)
def test_a_study_without_pretraining_is_refused(
    spoilt: Callable[[str], str], found: str, medfl: Medfl, study: Path, tmp_path: Path
) -> None:
    study.write_text(spoilt(study.read_text()))
    out = tmp_path / "pretrained.safetensors"
    medfl("pretrain", study, "-o", out).refused(2, "[synthetic] pretraining_steps >= 1", found)
    assert not out.exists()


def test_a_file_that_exists_is_kept(medfl: Medfl, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "pretrained.safetensors"
    out.write_bytes(b"precious")
    medfl("pretrain", study, "-o", out).refused(2, out, "expected a new file")
    assert out.read_bytes() == b"precious"


def test_a_path_that_cannot_be_written_is_refused_before_the_training(
    medfl: Medfl, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        pytest.fail("Expected no training.")

    monkeypatch.setattr("medfl.study.starting_point.initial_weights", train)
    (tmp_path / "file").touch()
    medfl("pretrain", study, "-o", tmp_path / "file" / "model").refused(2, "can be written")


def test_a_start_without_pretraining_says_nothing_true(medfl: Medfl, study: Path) -> None:
    line = f'start = {{ file = "x", sha256 = "{"0" * 64}" }}\n'
    study.write_text(study.read_text().replace(STEPS, NO_STEPS) + line)
    medfl("plan", study, study).refused(2, "key synthetic", "pretraining_steps >= 1 with start")
