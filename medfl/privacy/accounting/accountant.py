"""From charges to epsilon.

The default is Google's privacy loss distributions (PLD), which bound epsilon from above to within
the discretisation; Opacus' PRV and Rényi accountants serve as checks. Central-limit ("GDP")
epsilon is absent on purpose: it is not an upper bound.

Everything here assumes full participation: the server sees which sites take part, so no
amplification comes from choosing sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq

from medfl.errors import BudgetExceeded
from medfl.privacy.accounting.charges import Charge, check_delta, merged
from medfl.privacy.accounting.prv import epsilon_prv
from medfl.privacy.accounting.renyi import (
    epsilon_from_renyi,
    epsilon_rdp,
    filter_order,
    renyi_divergence,
)
from medfl.privacy.mechanism import Mechanism

__all__ = [
    "Accuracy",
    "Charge",
    "epsilon",
    "epsilon_prv",
    "epsilon_rdp",
    "is_too_wide",
    "lifetime_epsilon",
    "noise_multiplier_for",
    "privacy_curve",
    "replace_one_epsilon",
    "smallest_noise",
]

Accuracy = Literal["budget", "report"]
Float64Array = npt.NDArray[np.float64]

_INTERVALS: dict[Accuracy, float] = {"budget": 1e-3, "report": 1e-4}
_ADD_OR_REMOVE = NeighboringRelation.ADD_OR_REMOVE_ONE
# A loss distribution so wide takes seconds to minutes and gigabytes, and tells nothing that the
# Rényi bound does not: a proposal may not stall a site.
_WIDEST = 1000.0
_WIDTH_ORDERS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

_NOISE_GRID = 10_000  # noise multipliers are published with four decimals
_SMALLEST_NOISE = 0.2
_LARGEST_NOISE = 1000.0


def epsilon(charges: Iterable[Charge], *, delta: float, accuracy: Accuracy = "budget") -> float:
    """Epsilon of all charges together, for one patient added or removed (equally: zeroed out).

    Koskela et al., arXiv 2102.12412; Doroshenko et al., arXiv 2207.04380 (connect the dots).

    Args:
        charges: In any order; their parameters have to be fixed in advance, see `lifetime_epsilon`.
        delta: In (0, 1).
        accuracy: ``budget`` discretises losses by 1e-3 (fast), ``report`` by 1e-4.

    Returns:
        An upper bound; 0 for no charges and infinity where one has no noise. For losses in the
        hundreds, which protect nobody, the Rényi bound.
    """
    check_delta(delta)
    return _pld_epsilon(merged(charges), delta, _INTERVALS[accuracy])


@lru_cache(maxsize=1024)
def _pld_epsilon(history: tuple[Charge, ...], delta: float, interval: float) -> float:
    if not history:
        return 0.0
    if is_too_wide(history):
        return epsilon_rdp(history, delta=delta)
    return float(_losses(history, _ADD_OR_REMOVE, interval).get_epsilon(delta))


def replace_one_epsilon(
    charges: Iterable[Charge], *, delta: float, accuracy: Accuracy = "budget"
) -> float:
    """Epsilon of all charges together, for one patient's data exchanged for any other's.

    Args:
        charges: As for `epsilon`.
        delta: In (0, 1).
        accuracy: As for `epsilon`.

    Returns:
        An upper bound, 1.1 to 2.7 times that of `epsilon` in usual settings; infinity for losses in
        the hundreds.
    """
    check_delta(delta)
    history = merged(charges)
    if not history:
        return 0.0
    if is_too_wide(history):
        return math.inf
    losses = _losses(history, NeighboringRelation.REPLACE_ONE, _INTERVALS[accuracy])
    return float(losses.get_epsilon(delta))


def privacy_curve(charges: Iterable[Charge], *, epsilons: Float64Array) -> Float64Array:
    """The smallest known delta at each epsilon, from the loss distribution of a report's `epsilon`.

    Args:
        charges: As for `epsilon`.
        epsilons: Ascending, at least 0; shape (n,).

    Returns:
        Upper bounds on delta, shape (n,); all 1 without noise and for losses in the hundreds.
    """
    history = merged(charges)
    if not history:
        return np.zeros_like(epsilons)
    if is_too_wide(history):
        return np.ones_like(epsilons)
    losses = _losses(history, _ADD_OR_REMOVE, _INTERVALS["report"])
    return np.clip(np.asarray(losses.get_delta(epsilons), dtype=np.float64), 0.0, 1.0)


def lifetime_epsilon(studies: Sequence[Sequence[Charge]], *, delta: float, budget: float) -> float:
    """Epsilon of a cohort over all its studies, each chosen after seeing earlier outputs.

    One study, whose parameters were fixed before its first step, counts by `epsilon`. As soon as
    there are several, a Rényi filter counts them all (Feldman and Zrnic, arXiv 2008.11193):
    divergences at `filter_order`, one order fixed by budget and delta, add up however the studies
    were chosen. Where outputs of the first study also decide whether a second one begins, the two
    ways of counting together promise (budget, 2 delta).

    Args:
        studies: The charges of each study; empty ones do not count. A study whose mechanism changes
            has to be given as two.
        delta: In (0, 1).
        budget: Lifetime epsilon of the cohort, finite.

    Returns:
        The value to compare with `budget`; infinity where a charge has no noise.
    """
    check_delta(delta)
    _check_positive("budget", budget)
    counted = [merged(study) for study in studies if study]
    if len(counted) <= 1:
        return epsilon([charge for study in counted for charge in study], delta=delta)
    order = filter_order(budget=budget, delta=delta)
    divergence = sum(renyi_divergence(study, order=order) for study in counted)
    return epsilon_from_renyi(divergence, order=order, delta=delta)


def noise_multiplier_for(
    *,
    epsilon: float,
    delta: float,
    sampling_prob: float,
    steps: int,
    prior: Sequence[Charge] = (),
    prior_studies: Sequence[Sequence[Charge]] = (),
    budget: float = math.inf,
) -> float:
    """The smallest noise multiplier with which a study keeps to its target and to its cohort's.

    Args:
        epsilon: Target of the study.
        delta: In (0, 1).
        sampling_prob: q of the study.
        steps: T, all local steps of all rounds.
        prior: Charges that the study already has.
        prior_studies: Charges of every earlier study of the cohort, as `Ledger.studies` gives them.
        budget: Lifetime epsilon of the cohort; required where there are prior studies.

    Returns:
        sigma, rounded up to four decimals, such that both `epsilon` over the study and
        `lifetime_epsilon` over everything stay within their limits, so that the ledger charges it;
        at least 0.2.

    Raises:
        BudgetExceeded: If no noise multiplier up to 1000 fits what is left.
        ValueError: If an argument is out of range.
    """
    check_delta(delta)
    _check_positive("epsilon", epsilon)
    _check_positive("budget", budget)
    if math.isinf(budget) and any(prior_studies):
        raise ValueError("Expected a finite budget where there are prior studies, found inf.")

    def excess(noise_multiplier: float) -> float:
        mechanism = _of(sampling_prob=sampling_prob, noise_multiplier=noise_multiplier)
        study = merged([*prior, Charge(mechanism=mechanism, steps=steps)])
        used = _pld_epsilon(study, delta, _INTERVALS["budget"]) / epsilon
        if math.isfinite(budget):
            lifetime = lifetime_epsilon([*prior_studies, study], delta=delta, budget=budget)
            used = max(used, lifetime / budget)
        return min(used, 1e6) - 1.0

    return smallest_noise(excess)


def smallest_noise(excess: Callable[[float], float]) -> float:
    """The first noise multiplier without excess.

    Args:
        excess: Decreases with the noise multiplier; above 0 where there is too little noise.

    Returns:
        With four decimals, at least 0.2.

    Raises:
        BudgetExceeded: If 1000 is not enough.
    """
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > _LARGEST_NOISE:
            raise BudgetExceeded(
                f"Expected a noise multiplier up to {_LARGEST_NOISE:g} to fit the remaining budget,"
                " found none: earlier charges have used it up."
            )
    low = max(high / 2, _SMALLEST_NOISE)
    while excess(low) <= 0:
        if low == _SMALLEST_NOISE:
            return low
        high, low = low, max(low / 2, _SMALLEST_NOISE)
    root = float(brentq(excess, low, high, xtol=1e-6))
    # The root is good to about 1e-6: walk to the value of the grid that truly is the first to fit.
    index = math.ceil(root * _NOISE_GRID)
    while excess(index / _NOISE_GRID) > 0:
        index += 1
    while excess((index - 1) / _NOISE_GRID) <= 0:
        index -= 1
    return index / _NOISE_GRID


def _of(*, sampling_prob: float, noise_multiplier: float) -> Mechanism:
    # Clipping, divisor and the steps of a round do not enter epsilon.
    return Mechanism(
        sampling_prob=sampling_prob,
        noise_multiplier=noise_multiplier,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=1,
        declared_patients=1,
    )


@lru_cache(maxsize=8)
def _losses(
    history: tuple[Charge, ...], relation: NeighboringRelation, interval: float
) -> PLDAccountant:
    accountant = PLDAccountant(relation, interval)
    for charge in history:
        accountant.compose(charge.mechanism.event(steps=charge.steps))
    return accountant


def is_too_wide(history: tuple[Charge, ...]) -> bool:
    """Whether a loss distribution would cost much and tell nothing: losses in the hundreds."""
    return epsilon_rdp(history, delta=0.5, orders=_WIDTH_ORDERS) > _WIDEST


def _check_positive(name: str, value: float) -> None:
    if type(value) not in (int, float) or not value > 0:
        raise ValueError(f"Expected {name} > 0, found {value!r}.")
