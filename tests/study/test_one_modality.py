"""A study of one modality: nothing needs a second one."""

from __future__ import annotations

from typing import Any

import pytest

from medfl.errors import ConfigError
from medfl.prediction.cohort import predict_cohort
from medfl.prediction.monai_bundle import export_bundle
from medfl.prediction.predictor import Predictor
from medfl.preflight.dry_run import dry_run
from medfl.reporting.report import write_report
from medfl.server.progress import Silent
from medfl.study.plan import plan_study
from medfl.study.run import run_study

ONLY: dict[str, Any] = {"modalities": ["t2f"]}
OPEN: dict[str, Any] = {"privacy": {"share_metrics": True, "allow_baselines": True}}
BASELINES = ["initial-only", "non-private", "local-only", "threshold"]


def test_a_site_without_the_only_modality_has_nothing_to_fill_in(federation: Any) -> None:
    site_state = federation.site_state(federation.site("east", data={"modalities": ["t1c"]}))
    for missing in ("refuse", "zero-fill"):
        study = federation.study(input={**ONLY, "missing_modality": missing})
        with pytest.raises(ConfigError, match=r"expected data\.modalities with .* \['t2f'\]"):
            site_state.stores(study)


def test_one_channel_reaches_the_network_in_plan_and_preflight(federation: Any) -> None:
    study, site = federation.study(input=ONLY), federation.site("east", data=ONLY)
    site_state = federation.site_state(site)
    assert site_state.stores(study)[0].prepared(0)[0].image_CDHW.shape[0] == 1
    (finding,) = dry_run(site_state, study)
    assert finding.severity == "note"
    assert plan_study(study, [site]).sites


@pytest.mark.slow
def test_a_whole_study_of_one_modality_ends_in_masks_a_report_and_a_bundle(
    federation: Any,
) -> None:
    out = federation.scratch / "run"
    study = federation.study(
        input=ONLY,
        training={"rounds": 1},
        evaluation={"baselines": BASELINES, "pictures": 1},
        synthetic={"shape": [20, 20, 16], "spacing": [9.0, 9.0, 10.0], "skull_stripped": True},
    )
    # One hospital has one modality, the other one all four.
    sites = [federation.site("east", data=ONLY, **OPEN), federation.site("south", **OPEN)]
    summary = run_study(study, sites, out=out, engine="inprocess", progress=Silent())
    assert set(summary.dice) == {"federated", *BASELINES}
    assert "FLAIR" in write_report(out).read_text()
    model = out / "checkpoints" / "final.safetensors"
    masks = federation.scratch / "masks"
    assert predict_cohort(Predictor(model), sites[0].data, out=masks) == []
    assert len(list(masks.rglob("*.nii.gz"))) == 4
    bundle = export_bundle(out, federation.scratch / "bundle")
    assert "T2-FLAIR" in (bundle / "docs" / "README.md").read_text()
