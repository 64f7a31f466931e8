"""Poisson draws of patients: who takes part in one step.

Every patient is drawn independently with the same probability; shuffled or fixed-size batches would
not have the privacy that the accountant computes (arXiv 2403.17673). The result is a secret of the
site, its size included.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Coins(Protocol):
    """Independent uniform values from a cryptographic stream."""

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Values in [0, 1)."""


def poisson_draw(*, population: int, probability: float, source: Coins) -> list[int]:
    """Draw the patients of one step.

    Args:
        population: Number of patients; 0 where everybody has withdrawn.
        probability: q in (0, 1], the inclusion probability of every patient.
        source: Cryptographic stream, independent of every seed.

    Returns:
        Indices in ascending order; often empty for small q, which is a normal step.

    Raises:
        ValueError: If an argument is out of range.
    """
    if type(population) is not int or population < 0:
        raise ValueError(f"Expected a whole population >= 0, found {population!r}.")
    if not 0 < probability <= 1:
        raise ValueError(f"Expected probability in (0, 1], found {probability!r}.")
    drawn = source.uniform(population) < probability
    return [int(index) for index in np.flatnonzero(drawn)]
