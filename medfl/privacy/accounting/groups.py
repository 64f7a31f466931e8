"""What several patients lose together: a family, or all whom a hospital withdraws.

A guarantee for one patient is weaker for a group, and at a hospital's size it is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from dp_accounting import NeighboringRelation, SelfComposedDpEvent
from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.stats import binom

from medfl.privacy.accounting.accountant import epsilon_rdp, is_too_wide
from medfl.privacy.accounting.charges import Charge, merged

_SMALLEST_LOG_DELTA = -690.0  # floats end at about exp(-708)
_BISECTIONS = 40
# Ten times as coarse as an epsilon that is charged, for the sake of time; a bound all the same.
_INTERVAL = 1e-2

History = tuple[Charge, ...]


def group_epsilon(
    one_patient: Iterable[Sequence[Charge]], *, size: int, delta: float, disjoint: bool
) -> float:
    """Epsilon of several patients together, wherever each of them is.

    Two bounds hold, and the smaller one is taken.

    If one patient is protected with (e, d), then k patients are with k e and
    d (1 + exp(e) + ... + exp((k - 1) e)); Vadhan, "The Complexity of Differential Privacy", 2017,
    lemma 2.2, with the sum of its proof in place of k exp(k e). Any d may be taken, so it is the
    largest found at which the sum keeps to `delta`. Rényi bounds reach such small d; they stay an
    upper bound.

    Where nobody is at two places, each of k patients is drawn by itself in a step, so that what is
    released moves by at most i C with the probability that i of them are drawn: a mixture of
    Gaussians, whose loss dominates that of the group (Ganesh, arXiv 2401.10294, theorem 3.1). It
    holds across sites as well, since what all of them release in a step, each divided by its noise,
    is one vector; the largest q, the smallest sigma and the most steps of any place bound all.

    Args:
        one_patient: What may be charged on one patient, one entry for each place to be at.
        size: k, the number of patients.
        delta: For all of them together, in (0, 1).
        disjoint: Whether each patient is at one place only, and so drawn once in a step.

    Returns:
        An upper bound; infinite without noise, or for losses in the hundreds.
    """
    places = tuple(merged(charges) for charges in one_patient)
    bound = _by_lemma(places, size, delta)
    return min(bound, _by_mixture(places, size, delta)) if disjoint else bound


@lru_cache(maxsize=64)
def _by_mixture(places: tuple[History, ...], size: int, delta: float) -> float:
    charges = [charge for history in places for charge in history]
    if not charges:
        return 0.0
    if any(is_too_wide(history) for history in places):
        return math.inf
    sampling_prob = max(charge.mechanism.sampling_prob for charge in charges)
    drawn = range(size + 1)
    step = MixtureOfGaussiansDpEvent(
        min(charge.mechanism.noise_multiplier for charge in charges),
        [float(number) for number in drawn],
        [float(chance) for chance in binom.pmf(drawn, size, sampling_prob)],
    )
    steps = max(sum(charge.steps for charge in history) for history in places)
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, _INTERVAL)
    accountant.compose(SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def _by_lemma(places: tuple[History, ...], size: int, delta: float) -> float:
    def of_one(log_delta: float) -> float:
        return max(epsilon_rdp(charges, delta=math.exp(log_delta)) for charges in places)

    def fits(log_delta: float) -> bool:
        one = of_one(log_delta)
        return log_delta + _log_sum(one, size=size) <= math.log(delta)

    low, high = _SMALLEST_LOG_DELTA, math.log(delta)
    if not fits(low):
        return math.inf
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return size * of_one(low)


def _log_sum(one: float, *, size: int) -> float:
    """Logarithm of 1 + exp(one) + ... + exp((size - 1) one)."""
    largest = (size - 1) * one
    if math.isinf(largest):
        return math.inf
    return largest + math.log(sum(math.exp(i * one - largest) for i in range(size)))
