"""The planner chooses noise that keeps to the study's target, the site's budget and its policy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from medfl.config import SiteConfig, StudyConfig
from medfl.config.aggregation import StudyAggregation
from medfl.config.site import SiteData, SitePolicy
from medfl.errors import BudgetExceeded
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.accounting.planner import (
    MOST_STEPS,
    averaged_noise,
    combined_noise,
    equal_steps,
    expected_benefit,
    noise_to_signal,
    plan_site,
)
from medfl.privacy.ledger.ledger import Agreement, Ledger
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.policy import check_proposal

DELTA = 1e-5
EARLIER: dict[str, Any] = {
    "sampling_prob": 0.25,
    "noise_multiplier": 3.0,
    "clip_norm": 1.0,
    "clipping": "fixed",
    "local_steps": 1,
    "declared_patients": 20,
}


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


def agree(ledger: Ledger, run: str, *, mechanism: Mechanism, steps: int) -> None:
    agreement = Agreement(
        study=run, proposal="0" * 64, mechanism=mechanism, members=frozenset({"a"}), steps=steps
    )
    ledger.agree(run, agreement)


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
    plan = plan_site(study(target=2.0, rounds=1), site(min_noise_multiplier=4.0))
    assert plan.mechanism.noise_multiplier == 4.0
    assert plan.epsilon < 2.0


def test_more_steps_and_a_larger_sampling_probability_need_more_noise() -> None:
    sigma = plan_site(study(target=2.0), site()).mechanism.noise_multiplier
    longer, larger = study(target=2.0, rounds=40), study(target=2.0, q=0.5)
    assert plan_site(longer, site()).mechanism.noise_multiplier > sigma
    assert plan_site(larger, site()).mechanism.noise_multiplier > sigma


def test_steps_of_all_rounds_are_planned() -> None:
    plan = plan_site(study(target=1.0, rounds=7, steps=3), site())
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


@pytest.mark.slow
def test_a_ledger_accepts_every_round_of_a_plan_made_from_it(tmp_path: Path) -> None:
    hospital = site(epsilon=8.0)
    with Ledger.create(tmp_path / "ledger", cohort="DU", epsilon=8.0, delta=DELTA) as ledger:
        for name in ("first", "second"):
            plan = plan_site(study(target=2.0, rounds=3), hospital, history=ledger.history())
            check_proposal(plan.mechanism, rounds=plan.rounds, site=hospital)
            agree(ledger, name, mechanism=plan.mechanism, steps=plan.total_steps)
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


# The four hospitals of the hand calculation: patients n, L = q n at q = 0.3.
HOSPITALS = {"DU": (36, 10.8), "HT": (28, 8.4), "CS": (13, 3.9), "FG": (12, 3.6)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "sigma", "of_a_site", "averaged"),
    [
        (3.0, 3.4311, {"DU": 0.3177, "HT": 0.4085, "CS": 0.8798, "FG": 0.9531}, 0.2570),
        (8.0, 1.6197, {"DU": 0.1500, "HT": 0.1928, "CS": 0.4153, "FG": 0.4499}, 0.1213),
    ],
)
def test_four_hospitals_by_hand(
    target: float, sigma: float, of_a_site: dict[str, float], averaged: float
) -> None:
    proposal = study(target=target, q=0.3, rounds=60, steps=1)
    plans = {
        name: plan_site(proposal, site(patients=n, weight=float(n), epsilon=10.0))
        for name, (n, _) in HOSPITALS.items()
    }
    calibrated = dp_accounting.calibrate_dp_mechanism(
        lambda: PLDAccountant(value_discretization_interval=1e-3),
        lambda noise: dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(noise)), 60
        ),
        target,
        DELTA,
        tol=1e-5,
    )
    assert calibrated == pytest.approx(sigma, abs=1.1e-4)
    for name, (_, divisor) in HOSPITALS.items():
        # Neither patients nor weight enter epsilon: one sigma for all, and L makes the difference.
        assert plans[name].mechanism.noise_multiplier == sigma
        assert plans[name].mechanism.divisor == pytest.approx(divisor)
        assert plans[name].noise_per_coordinate == pytest.approx(of_a_site[name], abs=5e-5)
    # w_i / L_i = n_i / (0.3 n_i), so that four equal terms stay: sqrt(4) sigma / (0.3 * 89).
    assert averaged_noise(list(plans.values())) == pytest.approx(averaged, abs=5e-5)
    assert averaged == pytest.approx(2 * sigma / 26.7, abs=5e-5)


@pytest.mark.parametrize(("target", "noise"), [(8.0, 0.142), (2.0, 0.451)])
def test_ten_equal_sites_have_the_noise_of_the_reference_table(target: float, noise: float) -> None:
    plan = plan_site(study(target=target, q=0.3, rounds=200, steps=1), site(patients=20))
    assert averaged_noise([plan] * 10) == pytest.approx(noise, abs=5e-4)


def test_steps_until_spent_is_the_last_that_the_budget_pays_for() -> None:
    plan = plan_site(study(target=3.0), site(epsilon=5.0))
    steps = plan.steps_until_spent()
    assert steps > plan.total_steps

    def oracle(count: int) -> float:
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        gaussian = dp_accounting.GaussianDpEvent(plan.mechanism.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.25, gaussian), count)
        return float(accountant.get_epsilon(DELTA))

    assert oracle(steps) <= 5.0 < oracle(steps + 1)


def rule(strategy: str, *, min_sites: int, faulty_sites: int = 0) -> StudyAggregation:
    return StudyAggregation.model_validate(
        {"strategy": strategy, "min_sites": min_sites, "faulty_sites": faulty_sites}
    )


def test_a_robust_rule_keeps_more_noise_than_an_average() -> None:
    one = plan_site(study(), site())
    plans, nu = [one] * 5, one.noise_per_coordinate
    assert combined_noise(plans, aggregation=rule("fedavg", min_sites=5)) == averaged_noise(plans)
    # Of five and of three standard Gaussians the median has a variance of 0.28683 and 0.44867, and
    # the three in the middle of five a mean with 0.22703: Sarhan and Greenberg 1956, tables 1, 2.
    for found, variance in (
        (rule("median", min_sites=5), 0.28683),
        (rule("trimmed-mean", min_sites=5, faulty_sites=1), 0.22703),
        (rule("trimmed-mean", min_sites=5, faulty_sites=2), 0.28683),
    ):
        assert combined_noise(plans, aggregation=found) == pytest.approx(
            nu * math.sqrt(variance), rel=0.01
        )
    assert combined_noise(plans[:3], aggregation=rule("median", min_sites=3)) == pytest.approx(
        nu * math.sqrt(0.44867), rel=0.01
    )
    krum = rule("krum", min_sites=5, faulty_sites=1)
    quieter = plan_site(study(target=8.0), site())
    assert combined_noise([*plans, quieter], aggregation=krum) == quieter.noise_per_coordinate < nu


@pytest.mark.slow
def test_steps_until_spent_are_those_that_the_ledger_accepts(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger", cohort="DU", epsilon=8.0, delta=DELTA) as ledger:
        earlier = Mechanism(**{**EARLIER, "local_steps": 2})
        agree(ledger, "r", mechanism=earlier, steps=2)
        ledger.charge(study="first", run="r", round=1, message_id="m", mechanism=earlier)
        plan = plan_site(study(target=4.0), site(), history=ledger.history())
        steps = plan.steps_until_spent()
        assert steps >= plan.total_steps
        ledger.admit("second", [Charge(mechanism=plan.mechanism, steps=steps)], run="1")
        with pytest.raises(BudgetExceeded):
            ledger.admit("third", [Charge(mechanism=plan.mechanism, steps=steps + 1)], run="1")


def test_counting_of_steps_ends() -> None:
    plan = plan_site(study(), site(min_noise_multiplier=500.0))
    assert plan.steps_until_spent() == MOST_STEPS


def test_a_baseline_without_noise_pays_for_no_step() -> None:
    assert plan_site(study(), site(), private=False).steps_until_spent() == 0


def test_epsilon_grows_from_before_the_study_to_its_end() -> None:
    history = [[Charge(mechanism=Mechanism(**EARLIER), steps=4)]]
    plan = plan_site(study(target=4.0), site(), history=history)
    losses = [plan.epsilon_after(steps) for steps in range(0, 21, 5)]
    assert losses[0] == plan.epsilon_before > 0
    assert losses[-1] == plan.epsilon
    assert losses == sorted(set(losses))


def test_noise_to_signal_is_the_ratio_of_norms_of_sums_over_the_study() -> None:
    noise, steps, parameters = 0.25, 40, 900
    draws = np.random.default_rng(5).normal(scale=noise, size=(steps, parameters))
    signal = np.zeros(parameters)
    signal[0] = 1.0  # every step the same clipped gradient, in units of C
    measured = np.linalg.norm(draws.sum(axis=0)) / np.linalg.norm(steps * signal)
    expected = noise_to_signal(noise, steps=steps, parameters=parameters)
    assert measured == pytest.approx(expected, rel=0.1)
    assert expected == pytest.approx(0.25 * 30 / math.sqrt(40))


@pytest.mark.parametrize(
    ("ratio", "benefit"),
    [(0.0, "usable"), (5.99, "usable"), (6.0, "weak"), (9.99, "weak"), (10.0, "none"),
     (math.inf, "none")],
)  # fmt: skip
def test_more_noise_promises_less(ratio: float, benefit: str) -> None:
    assert expected_benefit(ratio) == benefit


def scheduled(**schedules: Any) -> StudyConfig:
    values = study(rounds=2, steps=2).model_dump(mode="json")
    values["aggregation"]["strategy"] = "fedavgm"
    for key, schedule in schedules.items():
        section = "privacy" if key.startswith("clip") else "training"
        values["aggregation" if key.startswith("server") else section][key] = schedule
    return StudyConfig.model_validate_json(json.dumps(values))


@pytest.mark.parametrize(
    "keys",
    [
        ["clip_norm_schedule"],
        ["learning_rate_schedule"],
        ["server_learning_rate_schedule"],
        ["clip_norm_schedule", "server_learning_rate_schedule"],
    ],
    ids=str,
)
def test_steps_of_falling_size_are_fewer_equal_ones(keys: list[str]) -> None:
    falling = {"shape": "linear", "final_fraction": 0.5}
    last = 0.5 ** len(keys)
    found = equal_steps(scheduled(**dict.fromkeys(keys, falling)))
    # 2 steps of size 1 and 2 of size `last`: the norms of their sums by hand.
    signal, noise = 2 * (1 + last), math.sqrt(2 * (1 + last**2))
    assert noise_to_signal(0.3, steps=found, parameters=100) == pytest.approx(
        0.3 * math.sqrt(100) * noise / signal
    )
    assert found < 4


def test_steps_of_one_size_are_those_of_the_study() -> None:
    assert equal_steps(study()) == 20
    assert equal_steps(scheduled()) == 4


def test_a_clip_norm_that_changes_costs_the_same_noise_and_epsilon() -> None:
    falling = {"shape": "cosine", "warmup_rounds": 1, "final_fraction": 0.5}
    changing = study(rounds=10).model_dump(mode="json")
    changing["privacy"]["clip_norm_schedule"] = falling
    plans = [
        plan_site(each, site())
        for each in (study(rounds=10), StudyConfig.model_validate_json(json.dumps(changing)))
    ]
    flat, plan = plans
    assert plan.epsilon == flat.epsilon
    assert plan.mechanism.clip_norm_schedule is not None
    assert plan.mechanism == replace(
        flat.mechanism, clip_norm_schedule=plan.mechanism.clip_norm_schedule
    )
    assert plan.mechanism.in_round(10).clip_norm == 0.25
    assert plan.steps_until_spent() == flat.steps_until_spent()


def test_a_target_that_no_noise_meets_names_the_site() -> None:
    with pytest.raises(
        BudgetExceeded, match=r"Site DU: .* 20 steps .* epsilon 1e-07 .* found none"
    ):
        plan_site(study(target=1e-7), site())
