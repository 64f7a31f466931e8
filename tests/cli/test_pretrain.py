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
from medfl.federation.simulation import prepare_folder
from medfl.federation.starting_point import first_weights

Medfl = Callable[..., Any]

STUDY = """
id = "tiny"
[input]
modalities = ["t1c", "t2f"]
regions = ["WT", "ET"]
crop_size = [16, 16, 16]
[network]
name = "SegResNet"
arguments = { init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }
[privacy]
epsilon = 8.0
sampling_prob = 0.5
[training]
rounds = 2
local_steps = 1
optimizer = "sgd"
learning_rate = 0.5
[aggregation]
strategy = "fedavg"
min_sites = 1
"""
SYNTHETIC = """
[synthetic]
shape = [20, 20, 16]
spacing = [9.0, 9.0, 10.0]
skull_stripped = true
pretraining_patients = 2
pretraining_steps = 2
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY + SYNTHETIC)
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
    study.write_text(STUDY + SYNTHETIC + line + "\n")
    started = load_study(study)
    prepare_folder(tmp_path / "run", study=started, resume=False)
    found = first_weights(started, out=tmp_path / "run", threads=1, advance=lambda *_: None)
    written = load_file(out)
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in found)


def test_the_model_segments_patients(
    medfl: Medfl, study: Path, synthetic_patients: Path, tmp_path: Path
) -> None:
    model, masks = tmp_path / "pretrained.safetensors", tmp_path / "masks"
    assert medfl("pretrain", study, "-o", model).code == 0
    ended = medfl("predict", synthetic_patients / "east", "--model", model, "-o", masks)
    assert ended.code == 0, ended.err
    assert len(list(masks.rglob("*.nii.gz"))) == 4


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("", "found no such section"),
        (SYNTHETIC.replace("steps = 2", "steps = 0"), "found 0"),
    ],
    ids=["no section", "no steps"],
)
def test_a_study_without_pretraining_is_refused(
    section: str, found: str, medfl: Medfl, study: Path, tmp_path: Path
) -> None:
    study.write_text(STUDY + section)
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

    monkeypatch.setattr("medfl.federation.starting_point.initial_weights", train)
    (tmp_path / "file").touch()
    medfl("pretrain", study, "-o", tmp_path / "file" / "model").refused(2, "can be written")


def test_a_start_without_pretraining_says_nothing_true(medfl: Medfl, study: Path) -> None:
    line = f'start = {{ file = "x", sha256 = "{"0" * 64}" }}\n'
    study.write_text(STUDY + SYNTHETIC.replace("steps = 2", "steps = 0") + line)
    medfl("plan", study, study).refused(2, "key synthetic", "pretraining_steps >= 1 with start")
