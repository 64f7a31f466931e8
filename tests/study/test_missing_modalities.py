"""Sites without all modalities: refused, or trained together with the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medfl.errors import ConfigError, QuorumError

FILLING = {"missing_modality": "zero-fill", "modality_dropout": 0.3}
FLAIR_ONLY = {"modalities": ["t2f"]}


def test_a_missing_channel_is_air_and_the_rest_is_as_ever(federation: Any) -> None:
    study = federation.study(input=FILLING)
    whole = federation.site_state(federation.site("east"))
    lacking = federation.site_state(federation.site("east", data=FLAIR_ONLY))
    ((with_t1c,), (without,)) = (
        site_state.stores(study)[0].prepared(0) for site_state in (whole, lacking)
    )
    assert not without.image_CDHW[0].any()
    assert with_t1c.image_CDHW[0].any()
    assert torch.equal(without.image_CDHW[1], with_t1c.image_CDHW[1])
    assert torch.equal(without.regions_RDHW, with_t1c.regions_RDHW)


def test_a_cache_of_the_whole_case_is_not_taken_for_the_lacking_one(federation: Any) -> None:
    study = federation.study(input=FILLING)
    site = federation.site("east")
    lacking = site.model_copy(
        update={"data": site.data.model_copy(update={"modalities": ("t2f",)})}
    )
    assert federation.site_state(site).stores(study)[0].prepared(0)[0].image_CDHW[0].any()
    prepared = federation.site_state(lacking).stores(study)[0].prepared(0)
    assert not prepared[0].image_CDHW[0].any()


def test_a_site_with_none_of_the_modalities_is_refused(federation: Any) -> None:
    site_state = federation.site_state(federation.site("east", data={"modalities": ["t1n"]}))
    with pytest.raises(ConfigError, match=r"expected data\.modalities with one of") as caught:
        site_state.stores(federation.study(input=FILLING))
    assert caught.value.code == "modalities"


@pytest.mark.slow
def test_sites_with_different_modalities_train_together(federation: Any) -> None:
    sites = [
        federation.site("east", data={"modalities": ["t1c"]}),
        federation.site("south", data=FLAIR_ONLY),
    ]
    finished = federation.run(federation.study(input=FILLING), sites)
    assert all(value.isfinite().all() for value in finished.weights.values())
    with pytest.raises(QuorumError, match="modalities"):
        federation.run(federation.study(), sites, name="refusing")
