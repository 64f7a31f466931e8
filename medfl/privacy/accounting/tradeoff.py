"""What an epsilon means for one patient: how well anyone could tell whether they took part.

Read off the loss distribution's own trade-off curve. From (epsilon, delta) alone the same numbers
could be several times worse, and from Opacus' central-limit value they would be too good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from medfl.privacy.accounting.accountant import Float64Array, privacy_curve
from medfl.privacy.accounting.charges import Charge, check_delta, merged
from medfl.privacy.accounting.renyi import epsilon_rdp

SMALLEST_DELTA = 1e-10
"""Where curves are compared: below it, truncated tails of the distribution dominate."""

_LARGEST_EPSILON = 700.0  # exp of it is finite; losses beyond protect nobody
_POINTS = 2001
_BISECTIONS = 60
_LARGEST_MU = 1e4  # beyond, floats lose the second term of delta, which is tiny there


@dataclass(frozen=True, kw_only=True)
class Distinguishability:
    """The best attack that the mechanism allows, whatever the attacker knows.

    Attributes:
        mu: The smallest mu-GDP (Dong et al., arXiv 1905.02383) whose curve lies above the
            mechanism's at every delta from `SMALLEST_DELTA` up.
        membership_advantage: Largest true positive rate less false positive rate.
        tpr_at_1_percent_fpr: Largest share of members found at one false alarm in a hundred.
    """

    mu: float
    membership_advantage: float
    tpr_at_1_percent_fpr: float


def distinguishability(charges: Iterable[Charge]) -> Distinguishability:
    """Bound every membership attack against what the charges released.

    Args:
        charges: Their parameters have to be fixed in advance.

    Returns:
        Upper bounds; infinite mu and rates of 1 without noise and for losses in the hundreds.
    """
    history = merged(charges)
    largest = epsilon_rdp(history, delta=SMALLEST_DELTA)
    if largest > _LARGEST_EPSILON:
        return Distinguishability(mu=np.inf, membership_advantage=1.0, tpr_at_1_percent_fpr=1.0)
    epsilons = np.linspace(0.0, largest, _POINTS)
    deltas = privacy_curve(history, epsilons=epsilons)
    return Distinguishability(
        mu=_dominating_mu(epsilons, deltas),
        membership_advantage=float(deltas[0]),
        tpr_at_1_percent_fpr=_true_positive_rate(epsilons, deltas, false_positive_rate=0.01),
    )


def _true_positive_rate(
    epsilons: Float64Array, deltas: Float64Array, *, false_positive_rate: float
) -> float:
    # Dong et al., section 2.2: each (epsilon, delta) bounds the misses from below by two lines.
    steep = 1 - deltas - np.exp(epsilons) * false_positive_rate
    flat = np.exp(-epsilons) * (1 - deltas - false_positive_rate)
    misses = max(0.0, float(np.max(steep)), float(np.max(flat)))
    return 1 - misses


def _dominating_mu(epsilons: Float64Array, deltas: Float64Array) -> float:
    known = deltas >= SMALLEST_DELTA
    if not known.any():
        return 0.0
    epsilons, deltas = epsilons[known], deltas[known]
    if deltas.max() >= 1:
        return float(np.inf)
    low, high = np.full_like(epsilons, 1e-9), np.full_like(epsilons, 1e3)
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        above = gaussian_delta(epsilons, middle) >= deltas
        high = np.where(above, middle, high)
        low = np.where(above, low, middle)
    return float(high.max())


def gaussian_delta(epsilons: Float64Array, mu: Float64Array) -> Float64Array:
    """Delta of the mu-GDP mechanism at each epsilon (Dong et al., corollary 2.13).

    Args:
        epsilons: At least 0, any shape.
        mu: Above 0, of the same shape.
    """
    upper = ndtr(-epsilons / mu + mu / 2)
    lower = np.exp(epsilons + log_ndtr(-epsilons / mu - mu / 2))
    return np.asarray(upper - lower, dtype=np.float64)


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon of the mu-GDP mechanism at a delta.

    Balle and Wang, arXiv 1805.06530, theorem 8, solved for epsilon from above.

    Args:
        mu: Sensitivity over standard deviation, at least 0.
        delta: In (0, 1).

    Returns:
        The smallest epsilon at which `gaussian_delta` is at most `delta`; infinite for infinite mu.
    """
    check_delta(delta)
    if not mu >= 0:
        raise ValueError(f"Expected mu >= 0, found {mu!r}.")
    if 2 * ndtr(mu / 2) - 1 <= delta:
        return 0.0
    # Without its second term, which is never negative, delta is too large.
    low, high = 0.0, float(mu * (mu / 2 - ndtri(delta)))
    if mu > _LARGEST_MU:
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = gaussian_delta(np.array([middle]), np.array([mu]))[0] <= delta
        low, high = (low, middle) if fits else (middle, high)
    return high
