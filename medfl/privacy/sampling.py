"""Poisson draws of patients: who takes part in one step.

Every patient is drawn independently with the same probability; shuffled or fixed-size batches would
not have the privacy that the accountant computes (arXiv 2403.17673). The result is a secret of the
site, its size included.
"""

from __future__ import annotations

import numpy as np

from medfl.privacy.noise import SecureNormal


def poisson_draw(*, population: int, probability: float, source: SecureNormal) -> list[int]:
    """Draw the patients of one step.

    Args:
        population: Number of patients.
        probability: q in (0, 1], the inclusion probability of every patient.
        source: Cryptographic stream, independent of every seed.

    Returns:
        Indices in ascending order; often empty for small q, which is a normal step.

    Raises:
        ValueError: If an argument is out of range.
    """
    if type(population) is not int or population < 1:
        raise ValueError(f"Expected a whole population >= 1, found {population!r}.")
    if not 0 < probability <= 1:
        raise ValueError(f"Expected probability in (0, 1], found {probability!r}.")
    drawn = source.uniform(population) < probability
    return [int(index) for index in np.flatnonzero(drawn)]
