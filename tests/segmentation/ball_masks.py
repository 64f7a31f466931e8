"""Two made-up pairs of masks, for which others' programs have computed scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
UNEVEN: Spacing = (1.0, 2.0, 0.5)


def balls(*placed: tuple[tuple[int, int, int], int]) -> Mask:
    """Balls by centre and radius in voxels; two touch a border of the image."""
    grid = np.indices((40, 44, 36))
    mask = np.zeros(grid.shape[1:], bool)
    for centre, radius in placed:
        away = grid - np.reshape(centre, (3, 1, 1, 1))
        mask |= (away**2).sum(axis=0) <= radius**2
    return mask


TRUTH_1 = balls(
    ((10, 12, 9), 6), ((28, 30, 20), 5), ((8, 34, 28), 3), ((33, 8, 30), 1), ((38, 40, 2), 4)
)
PREDICTED_1 = balls(
    ((11, 12, 10), 5), ((27, 29, 22), 6), ((20, 6, 30), 2), ((33, 9, 30), 1), ((39, 42, 0), 5)
)
TRUTH_2 = balls(
    ((12, 12, 12), 6), ((12, 27, 12), 4), ((30, 22, 20), 2), ((30, 30, 20), 2), ((4, 4, 30), 2)
)
PREDICTED_2 = balls(((12, 19, 12), 10), ((30, 26, 21), 4), ((5, 4, 30), 1), ((36, 40, 33), 3))
