"""Bounds on what guesses prove, against papers, simulations, and independent computations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import linprog
from scipy.stats import norm

from medfl.audit.bounds import (
    Guesses,
    contradicts_gaussian,
    epsilon_lower_bound,
    gaussian_epsilon,
    gaussian_estimate,
    largest_showable,
    lower_bounds,
    mu_lower_bound,
    p_value,
)

DELTA, CONFIDENCE = 1e-5, 0.95


def guesses(canaries: int, guessed: int, correct: int) -> Guesses:
    return Guesses(canaries=canaries, guessed=guessed, correct=correct)


def attacked(mu: float, *, canaries: int, guessed: int, rng: np.random.Generator) -> Guesses:
    """The best attack on one Gaussian mechanism a canary: the surest guesses of both kinds."""
    included = rng.random(canaries) < 0.5
    order = np.argsort(rng.normal(size=canaries) + mu * included)
    lowest, highest = order[: guessed // 2], order[-(guessed // 2) :]
    return guesses(canaries, guessed, int((~included[lowest]).sum() + included[highest].sum()))


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "published"),
    [
        (1000, 100, 75, 1e-4, 0.673),  # Steinke et al., appendix D
        (100_000, 1510, 1439, 1e-5, 2.675),  # section 7; the paper cuts off the last digit
    ],
)
def test_epsilon_is_the_published_one(
    m: int, r: int, v: int, delta: float, published: float
) -> None:
    shown = epsilon_lower_bound(guesses(m, r, v), delta=delta, confidence=0.95)
    assert shown == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("trials", [1, 20, 300])
def test_epsilon_of_faultless_guesses_without_delta_has_a_closed_form(trials: int) -> None:
    accuracy = 0.05 ** (1 / trials)
    expected = max(0.0, math.log(accuracy / (1 - accuracy)))
    shown = epsilon_lower_bound(guesses(trials, trials, trials), delta=0.0, confidence=0.95)
    assert shown == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "bound",
    [
        lambda found: epsilon_lower_bound(found, delta=DELTA, confidence=CONFIDENCE),
        lambda found: mu_lower_bound(found, confidence=CONFIDENCE),
    ],
)
def test_chance_and_silence_show_nothing(bound: Callable[[Guesses], float]) -> None:
    assert bound(guesses(0, 0, 0)) == 0
    assert bound(guesses(500, 0, 0)) == 0
    assert bound(guesses(500, 300, 0)) == 0
    assert bound(guesses(500, 300, 150)) == 0
    assert bound(guesses(500, 4, 4)) == 0  # right by chance once in sixteen


@pytest.mark.parametrize(
    "bound",
    [
        lambda found, confidence: epsilon_lower_bound(found, delta=DELTA, confidence=confidence),
        lambda found, confidence: mu_lower_bound(found, confidence=confidence),
    ],
)
def test_more_right_guesses_show_more_and_more_confidence_less(
    bound: Callable[[Guesses, float], float],
) -> None:
    shown = [bound(guesses(500, 200, correct), 0.95) for correct in (120, 150, 180, 200)]
    assert shown == sorted(set(shown))
    assert bound(guesses(500, 200, 180), 0.99) < shown[2] < bound(guesses(500, 200, 180), 0.9)


def test_a_larger_delta_explains_more() -> None:
    found = guesses(1000, 300, 280)
    shown = [epsilon_lower_bound(found, delta=delta, confidence=0.95) for delta in (0, 1e-5, 1e-3)]
    assert shown[0] > shown[1] > shown[2] > 0
    assert p_value(found, epsilon=1.0, delta=0.5) == 1.0


def test_randomised_response_attains_its_epsilon_and_is_not_overcharged() -> None:
    rng = np.random.default_rng(5)
    epsilon, canaries, runs = 1.0, 20_000, 200
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
    shown = [
        epsilon_lower_bound(
            guesses(canaries, canaries, int(rng.binomial(canaries, accuracy))),
            delta=0.0,
            confidence=0.95,
        )
        for _ in range(runs)
    ]
    # One run in twenty may exceed it: 10 of 200, and 20 would be three standard errors more.
    assert 1 <= sum(bound > epsilon for bound in shown) <= 20
    assert np.mean(shown) > 0.95 * epsilon


@pytest.mark.slow
def test_bounds_hold_for_gaussian_mechanisms() -> None:
    rng = np.random.default_rng(6)
    mu, runs = 1.0, 100
    true_epsilon = gaussian_epsilon(mu, delta=DELTA)
    found = [attacked(mu, canaries=1000, guessed=200, rng=rng) for _ in range(runs)]
    shown = [lower_bounds(one, delta=DELTA, confidence=CONFIDENCE) for one in found]
    assert sum(bound.mu > mu for bound in shown) <= (1 - CONFIDENCE) * runs
    assert sum(bound.epsilon > true_epsilon for bound in shown) <= (1 - CONFIDENCE) * runs
    # They say something, too, and the curve says more than a single epsilon.
    assert np.mean([bound.mu for bound in shown]) > 0.4 * mu
    assert np.mean([bound.epsilon_of_mu - bound.epsilon for bound in shown]) > 0


@pytest.mark.parametrize(
    ("m", "r", "v", "mu"), [(20, 12, 11, 0.5), (12, 12, 9, 0.8), (40, 10, 10, 1.5), (9, 3, 2, 0.3)]
)
def test_chance_under_a_gaussian_curve_agrees_with_a_linear_program(
    m: int, r: int, v: int, mu: float
) -> None:
    largest = chance_by_linear_program(m, r, v, mu=mu)
    found = guesses(m, r, v)
    assert contradicts_gaussian(found, mu=mu, level=min(1.0, largest * 1.002 + 1e-9))
    assert not contradicts_gaussian(found, mu=mu, level=largest * 0.998)


def chance_by_linear_program(m: int, r: int, v: int, *, mu: float) -> float:
    """The most probable v or more right guesses of r that theorem 3.2 of the paper allows.

    The concave curve 1 - f is the lowest of its tangents, which makes the theorem's inequalities
    linear in p_0 ... p_r.
    """
    numbers = np.arange(r + 1)
    rows, limits = [], []
    for z in np.linspace(-6.0, 4.0, 1001):
        slope = math.exp(-mu * z - mu**2 / 2)
        offset = norm.cdf(z + mu) - slope * norm.cdf(z)
        for i in range(v):
            right = np.where(numbers >= i + 1, numbers / m, 0.0)
            wrong = np.where(numbers >= i, (r - numbers) / m, 0.0)
            rows.append(right - slope * wrong)
            limits.append(offset)
    solution = linprog(
        -(numbers >= v).astype(float),
        A_ub=np.array(rows),
        b_ub=np.array(limits),
        A_eq=np.ones((1, r + 1)),
        b_eq=[1.0],
    )
    return -float(solution.fun)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.27, 1), (0.5, 2), (0.93, 4), (1.67, 8)])
def test_gaussian_epsilon_is_that_of_the_integrated_hockey_stick(mu: float, epsilon: int) -> None:
    found = gaussian_epsilon(mu, delta=DELTA)
    assert found == pytest.approx(epsilon, rel=0.03)

    def excess(x: float) -> float:
        return max(0.0, norm.pdf(x - mu) - math.exp(found) * norm.pdf(x))

    threshold = found / mu + mu / 2
    delta, _ = quad(excess, threshold, threshold + 12, epsabs=1e-14)
    assert delta == pytest.approx(DELTA, rel=1e-5)


def test_gaussian_epsilon_at_the_ends() -> None:
    assert gaussian_epsilon(0.0, delta=DELTA) == 0
    assert gaussian_epsilon(1e-6, delta=DELTA) == 0
    assert gaussian_epsilon(math.inf, delta=DELTA) == math.inf
    assert gaussian_epsilon(60.0, delta=DELTA) > 1800


def test_the_estimate_is_near_the_truth_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(8)
    mu, runs = 1.2, 400
    found = [
        gaussian_estimate(
            3 * rng.normal(size=260) + 3 * mu,
            3 * rng.normal(size=240),
            delta=DELTA,
            confidence=CONFIDENCE,
        )
        for _ in range(runs)
    ]
    assert np.mean([one.mu for one in found]) == pytest.approx(mu, abs=0.02)
    covered = sum(one.mu_low <= mu <= one.mu_high for one in found)
    assert abs(covered - CONFIDENCE * runs) < 4 * math.sqrt(runs * 0.05 * 0.95)
    assert all(one.epsilon_low < one.epsilon < one.epsilon_high for one in found)


def test_an_estimate_without_any_spread() -> None:
    one, other = np.ones(4), np.zeros(4)
    assert gaussian_estimate(one, other, delta=DELTA, confidence=0.9).epsilon_low == math.inf
    assert gaussian_estimate(one, one, delta=DELTA, confidence=0.9).epsilon_high == 0


def test_no_guesses_show_more_than_the_largest_showable() -> None:
    ceiling = largest_showable(canaries=300, guessed=100, delta=DELTA, confidence=CONFIDENCE)
    for correct in (60, 90, 99):
        shown = lower_bounds(guesses(300, 100, correct), delta=DELTA, confidence=CONFIDENCE)
        assert shown.epsilon < ceiling.epsilon
        assert shown.mu < ceiling.mu
    perfect = lower_bounds(guesses(300, 100, 100), delta=DELTA, confidence=CONFIDENCE)
    assert perfect == ceiling
    assert json.loads(json.dumps(ceiling.to_dict())) == ceiling.to_dict()


@pytest.mark.parametrize(("m", "r", "v"), [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_impossible_guesses_are_refused(m: int, r: int, v: int) -> None:
    with pytest.raises(ValueError, match="Expected 0 <= correct <= guessed <= canaries"):
        guesses(m, r, v)


@pytest.mark.parametrize(
    ("delta", "confidence", "rule"),
    [(0.0, 0.95, "delta"), (1.0, 0.95, "delta"), (DELTA, 0.0, "confidence"), (DELTA, 1.0, "conf")],
)
def test_arguments_out_of_range_are_refused(delta: float, confidence: float, rule: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {rule}"):
        lower_bounds(guesses(10, 5, 5), delta=delta, confidence=confidence)
    with pytest.raises(ValueError, match=f"Expected {rule}"):
        gaussian_estimate(np.ones(2), np.ones(2), delta=delta, confidence=confidence)
    with pytest.raises(ValueError, match="two scores of each kind"):
        gaussian_estimate(np.ones(1), np.ones(2), delta=DELTA, confidence=0.9)
