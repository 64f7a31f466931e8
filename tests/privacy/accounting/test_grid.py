"""A grid of runs costs what all of its runs cost, and a site that cannot pay for it is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medfl.errors import BudgetExceeded
from medfl.privacy.accounting.accountant import Charge, epsilon, lifetime_epsilon
from medfl.privacy.accounting.grid import plan_grid
from medfl.privacy.accounting.planner import SitePlan
from medfl.privacy.mechanism import Mechanism

DELTA = 1e-5
MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=4.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=2,
    declared_patients=20,
)


def plan(*, budget: float, history: tuple[tuple[Charge, ...], ...] = ()) -> SitePlan:
    """Six rounds of two steps."""
    study = [Charge(mechanism=MECHANISM, steps=12)]
    return SitePlan(
        site="north",
        mechanism=MECHANISM,
        rounds=6,
        weight=1.0,
        delta=DELTA,
        epsilon=lifetime_epsilon([*history, study], delta=DELTA, budget=budget),
        epsilon_before=lifetime_epsilon(history, delta=DELTA, budget=budget),
        epsilon_budget=budget,
        history=history,
    )


def ledgers_answer(runs: int, *, budget: float) -> float:
    """Each run is a study of its own in the ledger."""
    study = [Charge(mechanism=MECHANISM, steps=12)]
    return lifetime_epsilon([study] * runs, delta=DELTA, budget=budget)


@pytest.mark.parametrize("runs", [1, 2, 7])
def test_it_costs_what_the_ledger_will_count(runs: int) -> None:
    found = plan_grid(plan(budget=10.0), runs=runs)
    assert found.epsilon == pytest.approx(ledgers_answer(runs, budget=10.0))
    assert found.fits
    found.require_fit()


def test_the_runs_that_the_budget_pays_for_fit_and_one_more_does_not() -> None:
    found = plan_grid(plan(budget=4.0), runs=200)
    assert 1 < found.affordable < 200
    assert ledgers_answer(found.affordable, budget=4.0) <= 4.0
    assert ledgers_answer(found.affordable + 1, budget=4.0) > 4.0


def test_runs_of_the_recommended_size_all_fit() -> None:
    found = plan_grid(plan(budget=4.0), runs=50)
    single = epsilon([Charge(mechanism=MECHANISM, steps=12)], delta=DELTA)
    assert 0 < found.epsilon_of_each < single

    def single_run(noise: float) -> float:
        mechanism = replace(MECHANISM, noise_multiplier=noise)
        return epsilon([Charge(mechanism=mechanism, steps=12)], delta=DELTA)

    noise = next(
        number / 100 for number in range(400, 10_000) if single_run(number / 100)
        <= found.epsilon_of_each
    )  # fmt: skip
    study = [Charge(mechanism=replace(MECHANISM, noise_multiplier=noise), steps=12)]
    assert lifetime_epsilon([study] * 50, delta=DELTA, budget=4.0) <= 4.0
    coarser = [Charge(mechanism=replace(MECHANISM, noise_multiplier=noise * 0.97), steps=12)]
    assert lifetime_epsilon([coarser] * 50, delta=DELTA, budget=4.0) > 4.0


def test_earlier_studies_count() -> None:
    earlier = ((Charge(mechanism=MECHANISM, steps=30),),)
    fresh, used = plan_grid(plan(budget=4.0), runs=200), plan_grid(
        plan(budget=4.0, history=earlier), runs=200
    )  # fmt: skip
    assert used.affordable < fresh.affordable
    assert used.epsilon > fresh.epsilon
    assert used.epsilon_of_each < fresh.epsilon_of_each


def test_who_cannot_pay_is_named_with_a_way_out() -> None:
    found = plan_grid(plan(budget=4.0), runs=200)
    with pytest.raises(BudgetExceeded) as error:
        found.require_fit()
    text = str(error.value)
    for part in ("north", "200 runs", "budget of 4", f"pays for {found.affordable}", "each"):
        assert part in text


def test_without_noise_nothing_fits() -> None:
    silent = replace(plan(budget=4.0), mechanism=replace(MECHANISM, noise_multiplier=0.0))
    found = plan_grid(silent, runs=3)
    assert (found.affordable, found.epsilon) == (0, float("inf"))


def test_no_runs_are_no_grid() -> None:
    with pytest.raises(ValueError, match="runs >= 1"):
        plan_grid(plan(budget=4.0), runs=0)
