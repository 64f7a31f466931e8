"""A proposal weaker than the site's policy is refused with the code of the rule it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig
from medfl.config.site import SiteData, SitePolicy
from medfl.errors import PolicyRefused
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.policy import check_proposal

LIMITS: dict[str, Any] = {
    "epsilon": 8.0,
    "min_noise_multiplier": 1.0,
    "max_clip_norm": 2.0,
    "max_sampling_prob": 0.25,
    "max_local_steps": 10,
    "max_rounds": 50,
}
# Exactly at every limit.
ACCEPTED: dict[str, Any] = {
    "sampling_prob": 0.25,
    "noise_multiplier": 1.0,
    "clip_norm": 2.0,
    "clipping": "fixed",
    "local_steps": 10,
    "declared_patients": 20,
}


def site(*, purpose: Any = "hospital", **policy: Any) -> SiteConfig:
    return SiteConfig(
        name="DU",
        purpose=purpose,
        declared_patients=20,
        weight=20.0,
        state=Path("state"),
        data=SiteData(
            root=Path("data"), layout="brats2021", label_scheme="brats", modalities=("t2f",)
        ),
        privacy=SitePolicy(**{**LIMITS, **policy}),
    )


def refused(*, at: SiteConfig, rounds: int = 50, **changes: Any) -> str:
    with pytest.raises(PolicyRefused) as caught:
        check_proposal(Mechanism(**{**ACCEPTED, **changes}), rounds=rounds, site=at)
    return caught.value.code


def test_a_proposal_at_every_limit_is_accepted() -> None:
    check_proposal(Mechanism(**ACCEPTED), rounds=50, site=site())


def test_a_stricter_proposal_is_accepted() -> None:
    stricter = {"noise_multiplier": 9.0, "clip_norm": 0.1, "sampling_prob": 0.01, "local_steps": 1}
    check_proposal(Mechanism(**{**ACCEPTED, **stricter}), rounds=1, site=site())


@pytest.mark.parametrize("purpose", ["hospital", "open-data"])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"noise_multiplier": 0.9999}, "policy-noise-multiplier"),
        ({"noise_multiplier": 1e-3}, "policy-noise-multiplier"),
        ({"noise_multiplier": 1e-9, "revision": 1}, "policy-noise-multiplier"),
        ({"revision": 1}, "policy-revision"),
        ({"noise_multiplier": 0.0}, "policy-noise"),
        ({"clip_norm": 2.0001}, "policy-clip-norm"),
        ({"sampling_prob": 0.2501}, "policy-sampling-prob"),
        ({"local_steps": 11}, "policy-local-steps"),
        ({"rounds": 51}, "policy-rounds"),
        ({"declared_patients": 21}, "policy-declared-patients"),
        ({"declared_patients": 19}, "policy-declared-patients"),
    ],
)
def test_each_weakening_is_refused_with_a_code_of_its_own(
    changes: dict[str, Any], code: str, purpose: str
) -> None:
    assert refused(at=site(purpose=purpose), **changes) == code


def test_seeded_noise_is_for_open_data_only() -> None:
    assert refused(at=site(), noise_origin="seeded") == "policy-seeded"
    check_proposal(
        Mechanism(**{**ACCEPTED, "noise_origin": "seeded"}),
        rounds=1,
        site=site(purpose="open-data"),
    )


def test_baselines_without_noise_need_the_sites_permission_and_keep_its_other_rules() -> None:
    open_data = site(purpose="open-data", allow_baselines=True)
    check_proposal(Mechanism(**{**ACCEPTED, "noise_multiplier": 0.0}), rounds=1, site=open_data)
    assert refused(at=open_data, noise_multiplier=0.0, clip_norm=9.0) == "policy-clip-norm"


def test_the_refusal_says_rule_and_value_to_the_site() -> None:
    with pytest.raises(PolicyRefused, match=r"expects clip_norm <= 2.0, found 3.0"):
        check_proposal(Mechanism(**{**ACCEPTED, "clip_norm": 3.0}), rounds=1, site=site())


def test_the_code_holds_nothing_of_the_proposal_or_the_policy() -> None:
    assert not any(letter.isdigit() for letter in refused(at=site(), clip_norm=3.0))
