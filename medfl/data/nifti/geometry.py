"""How far apart two transforms put an image, in millimetres and not in elements of a matrix.

An element of the rotation that differs by 0.01 moves the far end of a row of 240 voxels by 2.4 mm,
and one of the translation moves it by a hair: only distances can be compared with a voxel.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
"""4 x 4, from voxel index to millimetres."""


def corners_apart(first: Affine, second: Affine, *, shape: tuple[int, int, int]) -> float:
    """The largest distance in mm between where two transforms put the same corner of an image.

    No voxel is further apart: the difference of two affine maps is affine, and so its length is
    largest at a corner of the box.

    Args:
        first: One transform.
        second: The other one.
        shape: Voxels along the three stored axes.
    """
    ends = [(0, size - 1) for size in shape]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)], dtype=np.float64)
    moved = corners @ (first - second).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def voxel_sizes(affine: Affine) -> NDArray[np.float64]:
    """Millimetres along the three stored axes."""
    sizes: NDArray[np.float64] = np.linalg.norm(affine[:3, :3].astype(np.float64), axis=0)
    return sizes


def shear_degrees(affine: Affine) -> float:
    """How far the stored axes are from right angles, at most; 0 for every scan without shear."""
    directions = affine[:3, :3] / voxel_sizes(affine)
    cosines = directions.T @ directions - np.eye(3)
    largest = min(float(np.abs(cosines[~np.eye(3, dtype=bool)]).max()), 1.0)
    return float(np.degrees(np.arcsin(largest)))
