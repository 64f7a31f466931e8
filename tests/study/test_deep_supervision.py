"""Networks that give several heads: all are trained, and the main one segments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medfl.audit.path_federation import path_federation
from medfl.audit.sensitivity import sensitivity_on_path
from medfl.config import StudyConfig
from medfl.segmentation.heads import heads_of
from medfl.segmentation.losses import patient_loss
from medfl.server.progress import Silent
from medfl.site import training_patients as site_patients
from medfl.study.pretraining import initial_weights
from medfl.study.run import run_study

SMALLER_HEADS: dict[str, Any] = {
    "name": "SegResNetDS",
    "arguments": {
        "init_filters": 8,
        "blocks_down": [1, 1, 1],
        "blocks_up": [1, 1],
        "norm": "INSTANCE",
        "dsdepth": 2,
    },
}
STACKED_HEADS: dict[str, Any] = {
    "name": "DynUNet",
    "arguments": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
        "deep_supervision": True,
        "deep_supr_num": 1,
    },
}
NETWORKS = [SMALLER_HEADS, STACKED_HEADS]


def deep(study: StudyConfig, network: dict[str, Any]) -> StudyConfig:
    values = study.model_dump(mode="json") | {"network": network}
    return StudyConfig.model_validate(values, strict=False)


@pytest.mark.parametrize("network", NETWORKS, ids=["smaller", "stacked"])
def test_a_patients_loss_is_the_mean_over_all_heads(
    network: dict[str, Any], federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = deep(federation.study(), network)
    site_state = federation.site_state(federation.site("east"))
    crops = torch.randn(2, 2, 16, 16, 16), torch.randint(0, 2, (2, 2, 16, 16, 16))
    monkeypatch.setattr(site_patients, "draw_crops", lambda *_, **__: crops)
    built = site_state.network(study)
    patients = site_state.training_patients(
        study, built, round_number=1, members=frozenset(site_state.members)
    )
    loss = patients.loss_of(0, torch.Generator())
    full = [
        torch.nn.functional.interpolate(head, size=(16, 16, 16), mode="trilinear")
        for head in heads_of(built, built(crops[0]))
    ]
    assert len(full) == 2
    expected = sum(patient_loss(head, crops[1]) for head in full) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in built.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=["smaller", "stacked"])
def test_the_heads_of_one_patient_depend_on_nobody_else(
    network: dict[str, Any], tmp_path: Any
) -> None:
    """DynUNet keeps its last patient's heads in the network, where the next could meet them."""
    study, sites = path_federation(tmp_path / "hospitals")
    found = sensitivity_on_path(
        deep(study, network),
        sites[:1],
        scratch=tmp_path / "scratch",
        draws=2,
        patients=4,
        advance=lambda *_: None,
    )
    assert found.keeps_promise
    assert found.removals >= 4


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=["smaller", "stacked"])
def test_pretraining_trains_every_head(network: dict[str, Any], federation: Any) -> None:
    synthetic = {
        "shape": [20, 20, 16],
        "spacing": [9.0, 9.0, 10.0],
        "skull_stripped": True,
        "seed": 500,
        "pretraining_patients": 2,
        "pretraining_steps": 2,
    }
    first, trained = (
        initial_weights(deep(study, network), threads=1, advance=lambda *_: None)
        for study in (federation.study(), federation.study(synthetic=synthetic))
    )
    heads = [name for name in first if "head" in name or "output_block" in name]
    assert len(heads) >= 2
    assert not any(torch.equal(first[name], trained[name]) for name in heads)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=["smaller", "stacked"])
def test_a_whole_study_runs_with_its_baselines(network: dict[str, Any], federation: Any) -> None:
    sites = federation.sites(
        "east", "south", privacy={"share_metrics": True, "allow_baselines": True}
    )
    study = federation.study(
        training={"rounds": 1}, evaluation={"baselines": ["initial-only", "non-private"]}
    )
    summary = run_study(
        deep(study, network),
        sites,
        out=federation.scratch / "run",
        engine="inprocess",
        progress=Silent(),
    )
    assert set(summary.dice) == {"federated", "initial-only", "non-private"}
