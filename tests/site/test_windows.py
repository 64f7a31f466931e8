"""A whole image is segmented in the study's windows, whoever does it and whatever crops trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet
from torch.nn.modules.module import register_module_forward_pre_hook

from medfl.protocol.messages import EvaluateTask
from medfl.protocol.study_model import study_model_bytes
from medfl.segmentation.lesions import score_lesions
from medfl.segmentation.networks import trainable_state
from medfl.site import scores
from medfl.site.scores import evaluate
from medfl.study import pictures

WINDOW = (24, 16, 16)
SYNTHETIC: dict[str, Any] = {
    "shape": [24, 24, 16],
    "spacing": [8.0, 8.0, 10.0],
    "skull_stripped": True,
    "seed": 500,
}


@pytest.fixture
def seen() -> Iterator[set[tuple[int, ...]]]:
    """Sizes of what has gone into networks."""
    sizes: set[tuple[int, ...]] = set()

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, SegResNet):
            sizes.add(tuple(inputs[0].shape[2:]))

    hook = register_module_forward_pre_hook(note)
    yield sizes
    hook.remove()


def test_a_site_scores_its_patients_in_windows(federation: Any, seen: set[tuple[int, ...]]) -> None:
    study = federation.study(input={"window_size": WINDOW})
    site_state = federation.site_state(federation.site("east", privacy={"share_metrics": True}))
    weights = trainable_state(site_state.network(study))
    seen.clear()  # of what building the network has tried
    evaluate(site_state, EvaluateTask(study=study, round=1, distances=False), weights)
    assert seen == {WINDOW}


def test_a_site_scores_lesions_where_distances_are_asked_for(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = federation.study()
    site_state = federation.site_state(federation.site("east", privacy={"share_metrics": True}))
    weights = trainable_state(site_state.network(study))
    quick = evaluate(site_state, EvaluateTask(study=study, round=1, distances=False), weights)
    assert {(one.hd95_mm, one.lesion_dice, one.lesion_hd95_mm) for one in quick.scores} == {
        (None, None, None)
    }
    _, held_out = site_state.stores(study)
    cases = [case for index in range(len(held_out)) for case in held_out.prepared(index)]
    segmented = iter([speckled(case.regions_RDHW) for case in cases])
    monkeypatch.setattr(scores, "segment", lambda *_arguments, **_options: next(segmented))
    whole = evaluate(site_state, EvaluateTask(study=study, round=1, distances=True), weights)
    expected = [
        (one.dice, one.hd95_mm)
        for case in cases
        for one in score_lesions(
            speckled(case.regions_RDHW),
            case.regions_RDHW,
            regions=study.input.regions,
            spacing_mm=case.spacing_mm,
        )
    ]
    assert [(one.lesion_dice, one.lesion_hd95_mm) for one in whole.scores] == expected
    assert all(one.lesion_dice < one.dice for one in whole.scores if one.dice > 0)


def speckled(regions_RDHW: torch.Tensor) -> torch.Tensor:
    """A perfect segmentation but for a speck in a corner."""
    found = regions_RDHW.float().clone()
    found[:, :2, :2, :2] = 1.0
    return found


def test_the_pictures_of_a_run_are_segmented_in_windows(
    federation: Any, seen: set[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = federation.study(
        input={"window_size": WINDOW}, synthetic=SYNTHETIC, evaluation={"pictures": 1}
    )
    weights = trainable_state(federation.site_state(federation.site("east")).network(study))
    model = tmp_path / "model.safetensors"
    model.write_bytes(study_model_bytes(weights, study=study, round_number=1, declarations={}))
    reading = pictures.read_model

    def read(path: Path) -> Any:
        found = reading(path)
        seen.clear()  # of what building the network has tried
        return found

    monkeypatch.setattr(pictures, "read_model", read)
    pictures.write_pictures(study, model=model, out=tmp_path / "predictions")
    assert seen == {WINDOW}
