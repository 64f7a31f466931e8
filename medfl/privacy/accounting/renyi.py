"""Rényi differential privacy: the fallback bound, and the filter that a lifetime needs.

Rényi losses at one order add up even where each mechanism is chosen after seeing what earlier ones
released, which privacy loss distributions do not allow. The lifetime of a cohort is such a sequence
of studies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from medfl.privacy.accounting.charges import Charge, check_delta, merged
from medfl.privacy.accounting.opacus_formulas import renyi_formulas

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in (*range(11, 64), 128, 256, 512, 1024)),
)
_FILTER_ORDERS = range(2, 1025)  # whole orders have a finite, exact sum


def renyi_divergence(charges: Iterable[Charge], *, order: float) -> float:
    """Rényi divergence of all charges together (Mironov et al., arXiv 1908.10530, section 3.3).

    Args:
        charges: In any order, chosen adaptively or not.
        order: alpha > 1.

    Returns:
        The divergence, infinite for a mechanism without noise or beyond what can be computed.
    """
    return sum(
        charge.steps
        * _one_step(charge.mechanism.sampling_prob, charge.mechanism.noise_multiplier, order)
        for charge in charges
    )


def epsilon_from_renyi(divergence: float, *, order: float, delta: float) -> float:
    """The epsilon that a Rényi divergence implies (Balle et al., arXiv 1905.09982, theorem 21).

    Args:
        divergence: Rényi divergence at `order`.
        order: alpha > 1.
        delta: In (0, 1).

    Returns:
        Epsilon, at least 0.
    """
    overhead = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
    return max(0.0, divergence + overhead)


def epsilon_rdp(
    charges: Iterable[Charge], *, delta: float, orders: Sequence[float] = ORDERS
) -> float:
    """The best epsilon over many orders.

    Args:
        charges: Their parameters have to be fixed in advance.
        delta: In (0, 1).
        orders: Rényi orders, each > 1.

    Returns:
        An upper bound, 5 to 20 per cent above that of loss distributions in usual settings.
    """
    check_delta(delta)
    history = merged(charges)
    if not history:
        return 0.0
    return min(
        epsilon_from_renyi(renyi_divergence(history, order=order), order=order, delta=delta)
        for order in orders
    )


@lru_cache(maxsize=64)
def filter_order(*, budget: float, delta: float) -> float:
    """The one order at which a cohort's lifetime is counted.

    It is the whole order at which a Gaussian mechanism may take the most out of the budget, and it
    depends on nothing but budget and delta, so that no output can influence it.

    Args:
        budget: Lifetime epsilon, finite and positive.
        delta: In (0, 1).

    Returns:
        The order: 4 for a budget of 8 at delta 1e-5, 6 for a budget of 4.
    """

    def capacity(order: int) -> float:
        # The Gaussian mechanism's divergence is proportional to the order.
        return (budget - epsilon_from_renyi(0.0, order=order, delta=delta)) / order

    return float(max(_FILTER_ORDERS, key=capacity))


@lru_cache(maxsize=65536)
def _one_step(sampling_prob: float, noise_multiplier: float, order: float) -> float:
    if noise_multiplier == 0:
        return math.inf
    try:
        divergence = float(
            renyi_formulas().compute_rdp(
                q=sampling_prob, noise_multiplier=noise_multiplier, steps=1, orders=order
            )
        )
    except (ArithmeticError, ValueError):
        # Out of the range of floating point: an order that cannot be computed bounds nothing.
        return math.inf
    return divergence if math.isfinite(divergence) else math.inf
