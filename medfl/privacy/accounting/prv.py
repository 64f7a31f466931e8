"""Opacus' PRV accountant as a guarded cross-check of the loss distributions.

It is an implementation by other people of another method, so that an error in either shows. It
takes minutes and may answer infinity where the loss is large, hence the guard.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import numpy as np

from medfl.privacy.accounting.charges import Charge, check_delta, merged
from medfl.privacy.accounting.renyi import epsilon_rdp

_ERROR = 0.01  # Opacus' default tolerance on epsilon
_LARGEST_GRID = 1 << 22  # points; a few seconds
_LARGEST_LOSS = 600.0  # exp(loss) has to stay finite


def epsilon_prv(charges: Iterable[Charge], *, delta: float) -> float:
    """Epsilon by numerical composition of privacy loss variables (Gopi et al., arXiv 2106.02848).

    Args:
        charges: Their parameters have to be fixed in advance.
        delta: In (0, 1).

    Returns:
        An upper bound within about 0.02 of the loss distributions'. Infinity, the bound that always
        holds, for a charge without noise and where it was not computed because the grid would be
        too large.
    """
    check_delta(delta)
    history = merged(charges)
    if not history:
        return 0.0
    if not _is_feasible(history, delta):
        return math.inf
    # Here, since Opacus brings torch, and a ledger is opened without this check.
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [
        (charge.mechanism.noise_multiplier, charge.mechanism.sampling_prob, charge.steps)
        for charge in history
    ]
    # Its tails divide by zero and its Rényi part warns about orders; the result is checked instead.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            value = float(accountant.get_epsilon(delta, eps_error=_ERROR))
        except (ArithmeticError, RuntimeError, ValueError):
            return math.inf
    return max(0.0, value) if math.isfinite(value) else math.inf


def _is_feasible(history: tuple[Charge, ...], delta: float) -> bool:
    """Whether the grid of Gopi et al., remark 5.6, has a reasonable size."""
    delta_error = delta / 1000
    largest_loss = epsilon_rdp(history, delta=delta_error / 4) + 3
    steps = sum(charge.steps for charge in history)
    spacing = _ERROR / math.sqrt(steps * math.log(12 / delta_error) / 2)
    return largest_loss <= min(_LARGEST_LOSS, _LARGEST_GRID * spacing / 2)
