"""The planner chooses noise that keeps to the study's target, the site's budget and its policy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig, StudyConfig
from medfl.config.site import SiteData, SitePolicy
from medfl.errors import BudgetExceeded
from medfl.privacy.accountant import Charge, epsilon
from medfl.privacy.ledger import Ledger
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.planner import averaged_noise, plan_site
from medfl.privacy.policy import check_proposal

DELTA = 1e-5
POLICY: dict[str, Any] = {"epsilon": 8.0, "delta": DELTA, "min_noise_multiplier": 0.3}


def study(*, target: float = 6.0, q: float = 0.25, rounds: int = 10, steps: int = 2) -> StudyConfig:
    values = {
        "id": "gliomas",
        "input": {"modalities": ["t1c", "t2f"], "regions": ["WT"], "crop_size": [16, 16, 16]},
        "network": {"name": "SegResNet"},
        "privacy": {"epsilon": target, "sampling_prob": q, "clip_norm": 0.5},
        "training": {
            "rounds": rounds,
            "local_steps": steps,
            "optimizer": "sgd",
            "learning_rate": 0.1,
        },
        "aggregation": {"strategy": "fedavg", "min_sites": 2},
    }
    return StudyConfig.model_validate_json(json.dumps(values))


def site(*, patients: int = 20, weight: float = 20.0, **policy: Any) -> SiteConfig:
    return SiteConfig(
        name="DU",
        purpose="hospital",
        declared_patients=patients,
        weight=weight,
        state=Path("state"),
        data=SiteData(
            root=Path("data"), layout="brats2021", label_scheme="brats", modalities=("t2f",)
        ),
        privacy=SitePolicy(
            **{"epsilon": 8.0, "delta": DELTA, "min_noise_multiplier": 0.3, **policy}
        ),
    )


def spent(mechanism: Mechanism, steps: int) -> float:
    return epsilon([Charge(mechanism=mechanism, steps=steps)], delta=DELTA)


def test_the_noise_is_the_smallest_that_keeps_to_the_studys_target() -> None:
    plan = plan_site(study(), site())
    sigma = plan.mechanism.noise_multiplier
    assert plan.epsilon <= 6.0
    assert plan.epsilon == pytest.approx(spent(plan.mechanism, 20))
    less = Mechanism(**{**plan.mechanism.to_dict(), "noise_multiplier": sigma - 1e-4})
    assert spent(less, 20) > 6.0


def test_the_mechanism_is_that_of_study_and_site_together() -> None:
    mechanism = plan_site(study(), site()).mechanism
    assert mechanism.sampling_prob == 0.25
    assert mechanism.clip_norm == 0.5
    assert mechanism.clipping == "normalised"
    assert mechanism.local_steps == 2
    assert mechanism.declared_patients == 20
    assert mechanism.noise_origin == "operating-system"


def test_a_smaller_budget_of_the_site_wins_over_the_studys_target() -> None:
    small, large = plan_site(study(), site(epsilon=2.0)), plan_site(study(), site())
    assert small.epsilon <= 2.0 < large.epsilon
    assert small.epsilon_budget == 2.0
    assert small.mechanism.noise_multiplier > large.mechanism.noise_multiplier


def test_the_noise_is_never_below_the_floor_of_the_policy() -> None:
    plan = plan_site(study(rounds=1), site(min_noise_multiplier=4.0))
    assert plan.mechanism.noise_multiplier == 4.0
    assert plan.epsilon < 6.0


def test_more_steps_and_a_larger_sampling_probability_need_more_noise() -> None:
    sigma = plan_site(study(), site()).mechanism.noise_multiplier
    assert plan_site(study(rounds=40), site()).mechanism.noise_multiplier > sigma
    assert plan_site(study(q=0.5), site()).mechanism.noise_multiplier > sigma


def test_steps_of_all_rounds_are_planned() -> None:
    plan = plan_site(study(rounds=7, steps=3), site())
    assert plan.total_steps == 21
    assert plan.rounds == 7


def test_what_was_spent_before_is_counted_on_top() -> None:
    first = plan_site(study(), site())
    history = [[Charge(mechanism=first.mechanism, steps=first.total_steps)]]
    with pytest.raises(BudgetExceeded, match="Site DU"):
        plan_site(study(), site(epsilon=6.0), history=history)
    second = plan_site(study(), site(), history=history)
    assert second.epsilon_before == pytest.approx(first.epsilon)
    assert first.epsilon < second.epsilon <= 8.0
    assert second.mechanism.noise_multiplier > first.mechanism.noise_multiplier


def test_a_ledger_accepts_every_round_of_a_plan_made_from_it(tmp_path: Path) -> None:
    hospital = site(epsilon=12.0)
    with Ledger.create(tmp_path / "ledger", cohort="DU", epsilon=12.0, delta=DELTA) as ledger:
        for name in ("first", "second"):
            plan = plan_site(study(target=4.0, rounds=3), hospital, history=ledger.history())
            check_proposal(plan.mechanism, rounds=plan.rounds, site=hospital)
            for number in range(1, plan.rounds + 1):
                ledger.charge(
                    study=name,
                    run=name,
                    round=number,
                    message_id=f"{name}-{number}",
                    mechanism=plan.mechanism,
                )
            assert ledger.spent().epsilon == pytest.approx(plan.epsilon)


def test_a_baseline_without_noise_costs_infinity() -> None:
    plan = plan_site(study(), site(), private=False)
    assert plan.mechanism.noise_multiplier == 0.0
    assert math.isinf(plan.epsilon)


def test_noise_per_coordinate_is_that_of_the_averaged_sum() -> None:
    plan = plan_site(study(), site())
    assert plan.noise_per_coordinate == pytest.approx(plan.mechanism.noise_multiplier / (0.25 * 20))


def test_averaged_noise_is_that_of_independent_sites_under_their_weights() -> None:
    plans = [
        plan_site(study(), site(patients=patients, weight=weight))
        for patients, weight in ((20, 3.0), (40, 1.0))
    ]
    parts = [0.75 * plans[0].noise_per_coordinate, 0.25 * plans[1].noise_per_coordinate]
    assert averaged_noise(plans) == pytest.approx(math.sqrt(parts[0] ** 2 + parts[1] ** 2))


def test_equal_sites_average_their_noise_down_with_the_square_root_of_their_number() -> None:
    plan = plan_site(study(), site())
    assert averaged_noise([plan] * 4) == pytest.approx(plan.noise_per_coordinate / 2)
