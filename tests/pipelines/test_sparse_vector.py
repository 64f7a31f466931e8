"""The sparse vector technique: its noise, its order of steps, and a bound that can be broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

REACH = 0.01


@pytest.fixture
def pipeline(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("sparse_vector")


@pytest.fixture
def mechanism(pipeline: ModuleType) -> Any:
    """One with other values, where they are given."""

    def make(**changes: float) -> Any:
        values = {"numbers": 1000, "share": 0.1, "reach": REACH, "threshold": 0.005, "epsilon": 9.0}
        return pipeline.SparseVector(**(values | changes))

    return make


def test_rounds_add_up_and_every_scale_is_that_of_the_paper(mechanism: Any) -> None:
    found = mechanism()
    assert found.sent == 100
    assert found.scales == pytest.approx((REACH / 1, 200 * REACH / 4, 200 * REACH / 4))
    assert found.true_epsilon(20) == 180
    # A value's noise is as large as its reach only where a round costs 9 / 4 of 2 c.
    assert mechanism(epsilon=450).scales[2] == pytest.approx(REACH)


def test_without_noise_those_above_the_threshold_are_sent_clipped(mechanism: Any) -> None:
    update = np.linspace(-0.02, 0.02, 1000)
    sent = mechanism(epsilon=math.inf, share=1.0).apply(update, generator=np.random.default_rng(1))
    expected = np.where(np.abs(update) >= 0.005, np.clip(update, -REACH, REACH), 0)
    np.testing.assert_array_equal(sent, expected)


def test_noise_comes_after_the_clipping_and_on_what_is_sent_only(mechanism: Any) -> None:
    update = np.full(1000, 5.0)  # far beyond the reach
    sent = np.concatenate(
        [mechanism().apply(update, generator=np.random.default_rng(seed)) for seed in range(60)]
    )
    values = sent[sent != 0]
    assert len(values) == 60 * 100
    of_value = mechanism().scales[2]
    assert np.abs(values).max() > REACH
    assert np.std(values) == pytest.approx(math.sqrt(2) * of_value, rel=0.05)
    assert np.mean(values) == pytest.approx(REACH, abs=4 * math.sqrt(2) * of_value / 77)


def test_whether_a_number_is_chosen_tells_no_more_than_epsilon(mechanism: Any) -> None:
    """One number, at its two extremes: the odds of the choice, counted."""
    single = mechanism(numbers=1, share=1.0, epsilon=1.8, threshold=REACH)
    line, query, _ = single.scales
    generator = np.random.default_rng(7)
    rates = []
    for size in (0.0, REACH):
        noise = generator.laplace(scale=query, size=400_000)
        lines = REACH + generator.laplace(scale=line, size=400_000)
        rates.append(np.mean(size + noise >= lines))
    low, high = rates
    bound = math.exp(1.8 * 5 / 9)
    assert 1 < high / low < bound
    assert (1 - low) / (1 - high) < bound


def test_partial_sharing_sends_the_largest_and_promises_nothing(pipeline: ModuleType) -> None:
    update = np.array([0.1, -5.0, 3.0, -0.2, 0.0])
    np.testing.assert_array_equal(pipeline.largest(update, share=0.4), [0, -5.0, 3.0, 0, 0])


@pytest.mark.parametrize(
    "changes",
    [{"share": 0.0}, {"share": 1.1}, {"share": 1e-4}, {"reach": 0.0}, {"epsilon": 0.0}],
    ids=str,
)
def test_what_is_no_mechanism_is_refused(changes: dict[str, float], mechanism: Any) -> None:
    with pytest.raises(ValueError, match="Expected"):
        mechanism(**changes)
