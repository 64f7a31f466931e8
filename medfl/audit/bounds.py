"""What guesses about canaries prove: lower bounds on epsilon from a single run.

Each of m canaries takes part by a fair coin, and an attacker guesses some of the coins. A mechanism
that keeps its promise makes many right guesses improbable; the bounds here are the strongest
promises that the guesses contradict. A bound near zero proves nothing: the attack was too weak, or
there were too few canaries, which `largest_showable` tells apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from medfl.privacy.accounting.tradeoff import gaussian_delta

Float64Array = npt.NDArray[np.float64]

_BISECTIONS = 50


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How many coins an attacker guessed, and how many of them rightly.

    Attributes:
        canaries: m, each included by a fair coin of its own.
        guessed: r, fixed before the run; the attacker abstains from the others.
        correct: v of the r.

    Raises:
        ValueError: Unless 0 <= correct <= guessed <= canaries.
    """

    canaries: int
    guessed: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guessed <= self.canaries:
            raise ValueError(f"Expected 0 <= correct <= guessed <= canaries, found {self}.")


@dataclass(frozen=True, kw_only=True)
class LowerBounds:
    """What guesses contradict, each at the confidence asked for.

    Attributes:
        epsilon: No mechanism with a smaller epsilon at this delta would have allowed the guesses,
            whatever it is.
        mu: No mechanism that is mu-GDP with a smaller mu would have.
        epsilon_of_mu: Epsilon at delta of the Gaussian mechanism with this mu.
    """

    epsilon: float
    mu: float
    epsilon_of_mu: float

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return vars(self).copy()


@dataclass(frozen=True, kw_only=True)
class GaussianEstimate:
    """An estimate, no bound: mu of two normal distributions of scores, with its interval.

    Attributes:
        mu: Difference of the means over the pooled standard deviation.
        mu_low: Lower end of the interval, at least 0.
        mu_high: Upper end.
        epsilon: Epsilon at delta of `mu`.
        epsilon_low: That of `mu_low`.
        epsilon_high: That of `mu_high`.
    """

    mu: float
    mu_low: float
    mu_high: float
    epsilon: float
    epsilon_low: float
    epsilon_high: float

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return vars(self).copy()


def lower_bounds(guesses: Guesses, *, delta: float, confidence: float) -> LowerBounds:
    """Both bounds.

    Args:
        guesses: The attacker's.
        delta: In [0, 1) for `epsilon`; above 0, since a Gaussian mechanism has no epsilon at 0.
        confidence: In (0, 1), of each bound by itself.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check(delta=delta, confidence=confidence)
    mu = mu_lower_bound(guesses, confidence=confidence)
    return LowerBounds(
        epsilon=epsilon_lower_bound(guesses, delta=delta, confidence=confidence),
        mu=mu,
        epsilon_of_mu=gaussian_epsilon(mu, delta=delta),
    )


def largest_showable(
    *, canaries: int, guessed: int, delta: float, confidence: float
) -> LowerBounds:
    """The ceiling of an audit: its bounds had every guess been right."""
    perfect = Guesses(canaries=canaries, guessed=guessed, correct=guessed)
    return lower_bounds(perfect, delta=delta, confidence=confidence)


def epsilon_lower_bound(guesses: Guesses, *, delta: float, confidence: float) -> float:
    """The largest epsilon that the guesses contradict (Steinke et al., arXiv 2305.08846).

    Args:
        guesses: The attacker's.
        delta: In [0, 1).
        confidence: 1 less the p-value below which a promise is contradicted.

    Returns:
        At least 0; 0 where nothing is contradicted.
    """
    level = 1 - confidence
    return _largest_rejected(lambda epsilon: p_value(guesses, epsilon=epsilon, delta=delta) < level)


def p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Largest chance of so many right guesses under (epsilon, delta)-DP.

    Steinke et al., arXiv 2305.08846, theorem 5.2 and appendix D: with epsilon alone, right guesses
    are no more than a binomial of r trials with the accuracy of randomised response; delta adds
    2 m delta max_i P[v - i <= W < v] / i.

    Args:
        guesses: The attacker's.
        epsilon: At least 0.
        delta: In [0, 1).

    Returns:
        A probability.
    """
    trials, correct = guesses.guessed, guesses.correct
    accuracy = float(expit(epsilon))
    by_chance = float(binom.sf(correct - 1, trials, accuracy))
    if correct == 0 or delta == 0:
        return by_chance
    shortfalls = np.arange(1, correct + 1)
    just_below = np.cumsum(binom.pmf(correct - shortfalls, trials, accuracy))
    by_failure = 2 * guesses.canaries * delta * float(np.max(just_below / shortfalls))
    return min(1.0, by_chance + by_failure)


def mu_lower_bound(guesses: Guesses, *, confidence: float) -> float:
    """The largest mu whose Gaussian trade-off curve the guesses contradict.

    Returns:
        At least 0; 0 where nothing is contradicted.
    """
    return _largest_rejected(lambda mu: contradicts_gaussian(guesses, mu=mu, level=1 - confidence))


def contradicts_gaussian(guesses: Guesses, *, mu: float, level: float) -> bool:
    """Whether under mu-GDP so many right guesses have a chance below `level`.

    Mahloujifar et al., arXiv 2410.22235, theorem 3.2 and algorithm 3 for two choices. Suppose v or
    more right guesses had probability `level`. With p_i the probability of exactly i of them, let
    right(i) = sum_{k >= i} k/m p_k and wrong(i) = sum_{k >= i} (r - k)/m p_k, the chances that a
    random canary is guessed rightly or wrongly. The trade-off curve f demands
    right(i + 1) <= 1 - f(wrong(i)) for each i, which builds up probability below v; if all of it
    comes to more than r/m, the supposition was wrong.

    Args:
        guesses: The attacker's.
        mu: Above 0.
        level: In (0, 1).
    """
    total = guesses.guessed / guesses.canaries if guesses.canaries else 0.0
    right = level * guesses.correct / max(guesses.canaries, 1)
    wrong = level * total - right
    for below in range(guesses.correct - 1, -1, -1):
        # 1 - f is Phi(Phi^-1(x) + mu); this is its inverse.
        needed = float(ndtr(ndtri(min(right, 1.0)) - mu))
        if needed <= wrong:
            break  # nothing changes any more further down
        right += below / (guesses.guessed - below) * (needed - wrong)
        wrong = needed
        if right + wrong > total:
            return True
    return right + wrong > total


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon of mu-GDP (Dong et al., arXiv 1905.02383, corollary 2.13).

    Args:
        mu: At least 0.
        delta: In (0, 1).
    """
    if math.isinf(mu):
        return math.inf

    def excess(epsilon: float) -> float:
        return float(gaussian_delta(np.array(epsilon), np.array(mu))) - delta

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    # The tail bound of the loss, which is N(mu^2 / 2, mu^2).
    highest = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(excess, 0.0, highest))


def gaussian_estimate(
    included: Float64Array, excluded: Float64Array, *, delta: float, confidence: float
) -> GaussianEstimate:
    """Estimate mu from the scores of canaries that took part and that did not.

    The interval is the large-sample one of a standardised difference of means (Hedges and Olkin,
    1985, chapter 5): variance 1/n + 1/n' + mu^2 / (2 (n + n')).

    Args:
        included: Scores, shape (n,), n >= 2.
        excluded: Scores, shape (n',), n' >= 2.
        delta: In (0, 1).
        confidence: Of the two-sided interval.

    Raises:
        ValueError: If there are fewer than two scores of a kind, or an argument is out of range.
    """
    _check(delta=delta, confidence=confidence)
    if min(included.size, excluded.size) < 2:
        raise ValueError(
            f"Expected two scores of each kind, found {included.size} and {excluded.size}."
        )
    counts = np.array([included.size, excluded.size])
    variances = np.array([included.var(ddof=1), excluded.var(ddof=1)])
    spread = math.sqrt(float(np.average(variances, weights=counts - 1)))
    moved = float(included.mean() - excluded.mean())
    if spread == 0:  # without any noise
        mu, error = math.inf if moved else 0.0, 0.0
    else:
        mu = abs(moved) / spread
        error = math.sqrt(float((1 / counts).sum()) + mu**2 / (2 * int(counts.sum())))
    reach = float(ndtri((1 + confidence) / 2)) * error
    low, high = max(0.0, mu - reach), mu + reach
    return GaussianEstimate(
        mu=mu,
        mu_low=low,
        mu_high=high,
        epsilon=gaussian_epsilon(mu, delta=delta),
        epsilon_low=gaussian_epsilon(low, delta=delta),
        epsilon_high=gaussian_epsilon(high, delta=delta),
    )


def _largest_rejected(rejects: Callable[[float], bool]) -> float:
    """Bisect for where rejection ends; the value returned is rejected itself.

    A weaker promise that is contradicted takes every stronger one with it, so that a bound stays
    true even where a test were not monotone.
    """
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if rejects(middle):
            low = middle
        else:
            high = middle
    return low


def _check(*, delta: float, confidence: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"Expected delta in (0, 1), found {delta!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence in (0, 1), found {confidence!r}.")
