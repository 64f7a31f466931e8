"""`medfl adapt` at the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.errors import ModelError
from medfl.segmentation.model_file import STAYS, ModelSpec, model_bytes, read_provenance
from medfl.segmentation.networks import trainable_state

Medfl = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    spec = ModelSpec(
        network="SegResNet",
        arguments={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
        modalities=("t1c", "t2f"),
        regions=("WT", "ET"),
        spacing="native",
        crop_size=(16, 16, 16),
        window_size=(16, 16, 16),
    )
    path = tmp_path / "federated.safetensors"
    path.write_bytes(model_bytes(trainable_state(spec.build()), spec=spec, provenance={}))
    return path


@pytest.fixture
def site_file(hospital_file: Callable[[str], Path]) -> Path:
    return hospital_file("north")


@pytest.mark.slow
def test_what_was_tried_is_shown_and_the_file_stays(
    medfl: Medfl, site_file: Path, model: Path
) -> None:
    out = load_site(site_file).state / "own.safetensors"
    ended = medfl("adapt", site_file, model, "-o", out, "--steps", 1, "--folds", 2)
    assert (ended.code, ended.out.count("chosen")) == (0, 1)
    for name in ("federated", "adapted", "average of federated and adapted"):
        assert name in ended.out
    assert STAYS in " ".join(ended.out.split())
    assert read_provenance(out)["privacy"] == STAYS
    # A pipe, too, says how far it is.
    assert "fold 1 of 2" in ended.err


def test_mistakes_end_in_a_sentence(
    medfl: Medfl, site_file: Path, model: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere" / "own.safetensors"
    medfl("adapt", site_file, model, "-o", outside).refused(2, outside, "state folder")
    inside = load_site(site_file).state / "own.safetensors"
    medfl("adapt", site_file, tmp_path / "none", "-o", inside).refused(2, "none")
    medfl("adapt", site_file, site_file, "-o", inside).refused(2, "safetensors")
    medfl("adapt", site_file, model, "-o", inside, "--start", model).refused(3, "no patient")
    medfl("adapt", site_file, model, "-o", inside, "--folds", 90).refused(2, "folds (90)")
    assert not inside.exists()


def test_what_is_not_given_stands_in_the_sites_file(
    medfl: Medfl, site_file: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def note(*_: Any, **named: Any) -> None:
        given.append({key: named[key] for key in ("steps", "folds", "seed")})
        raise ModelError("enough")

    monkeypatch.setattr("medfl.site.own_model.write_own_model", note)
    command = ("adapt", site_file, model, "-o", load_site(site_file).state / "own.safetensors")
    medfl(*command)
    site_file.write_text(f"{site_file.read_text()}\n[adapt]\nsteps = 7\nfolds = 4\nseed = 5\n")
    medfl(*command)
    medfl(*command, "--steps", 9, "--folds", 2, "--seed", 0)
    assert given == [
        {"steps": 100, "folds": 3, "seed": 0},
        {"steps": 7, "folds": 4, "seed": 5},
        {"steps": 9, "folds": 2, "seed": 0},
    ]
