"""Surfaces of masks as elements with a place and an area, and the distance between two of them.

A surface element lies wherever eight voxels that share a corner are not all alike; its area is that
of the marching-cubes triangles for their pattern (Nikolov et al., arXiv 1809.04430). MONAI has the
areas; its own search for the elements takes 10 s and 2 GB for a whole image. Two components that do
not touch, corners included, share no element, so the elements of many components are found at once
and taken apart by their owner.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

Labels = NDArray[np.integer[Any]]

_CORNERS = tuple(itertools.product((0, 1), repeat=3))
# What is equal on paper must not be a matter of luck: spacings come from an affine of float32, and
# areas from a table of such numbers.
_LENGTH_ROUNDING = 1e-5
_AREA_ROUNDING = 2e-7
_SPARSE = 4  # voxels an element, from which on a search tree is faster than a distance map


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Surface elements, in ascending order of their owner.

    Attributes:
        corners: One row an element: its place along D, H and W, in voxels.
        areas_mm2: Of each element.
        owners: The component that each element belongs to.
    """

    corners: NDArray[np.int64]
    areas_mm2: NDArray[np.float64]
    owners: Labels

    def of(self, owners: Sequence[int] | Labels) -> Surface:
        """The elements of these owners, which are in ascending order."""
        starts, ends = (
            np.searchsorted(self.owners, owners, side=side) for side in ("left", "right")
        )
        chosen = np.concatenate([np.arange(*ends_of) for ends_of in zip(starts, ends, strict=True)])
        return Surface(
            corners=self.corners[chosen],
            areas_mm2=self.areas_mm2[chosen],
            owners=self.owners[chosen],
        )


def surface_of(labels_DHW: Labels | NDArray[np.bool_], *, spacing_mm: Sequence[float]) -> Surface:
    """The surface of an image of numbered components, or of a mask.

    Args:
        labels_DHW: Number of the component that each voxel belongs to, 0 for none. Different
            components share no corner.
        spacing_mm: Millimetres per voxel along D, H and W.
    """
    labels: Labels = np.pad(labels_DHW, 1).astype(np.int32, copy=False)
    areas_mm2, (weights,) = get_code_to_measure_table([float(mm) for mm in spacing_mm])
    inside = (labels > 0).view(np.uint8)
    codes = np.zeros(tuple(length - 1 for length in labels.shape), np.uint8)
    for corner, weight in zip(_CORNERS, weights.flatten().tolist(), strict=True):
        codes += inside[_from(corner, codes.shape)] * np.uint8(weight)
    places = np.nonzero((codes != 0) & (codes != 255))
    owners = np.zeros(len(places[0]), labels.dtype)
    for corner in _CORNERS:
        np.maximum(owners, labels[_from(corner, codes.shape)][places], out=owners)
    order = np.argsort(owners, kind="stable")
    return Surface(
        corners=np.stack(places, axis=1)[order],
        areas_mm2=areas_mm2.numpy()[codes[places]].astype(np.float64)[order],
        owners=owners[order],
    )


def surface_dice(
    first: Surface, second: Surface, *, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """Part of the area of both surfaces that lies within a tolerance of the other one.

    Nikolov et al., arXiv 1809.04430.

    Args:
        first: One surface, not empty.
        second: The other, not empty.
        spacing_mm: Millimetres per voxel along D, H and W.
        tolerance_mm: How far apart two surfaces may be and still agree.
    """
    within = 0.0
    for start, end in ((first, second), (second, first)):
        near = _distances_mm(start, end, spacing_mm=spacing_mm) <= tolerance_mm * (
            1 + _LENGTH_ROUNDING
        )
        within += float(start.areas_mm2[near].sum())
    return within / float(first.areas_mm2.sum() + second.areas_mm2.sum())


def robust_hausdorff_mm(
    first: Surface, second: Surface, *, spacing_mm: Sequence[float], percentile: float
) -> float:
    """Larger of the two directed percentiles of distance, each element counted by its area.

    Nikolov et al., arXiv 1809.04430. The percentile is the smallest distance within which that part
    of a surface's area lies; nothing is interpolated.

    Args:
        first: One surface, not empty.
        second: The other, not empty.
        spacing_mm: Millimetres per voxel along D, H and W.
        percentile: In (0, 100].
    """
    return max(
        _directed_mm(*pair, spacing_mm=spacing_mm, percentile=percentile)
        for pair in ((first, second), (second, first))
    )


def _directed_mm(
    start: Surface, end: Surface, *, spacing_mm: Sequence[float], percentile: float
) -> float:
    distances = _distances_mm(start, end, spacing_mm=spacing_mm)
    order = np.argsort(distances)
    within = np.cumsum(start.areas_mm2[order])
    index = int(np.searchsorted(within, within[-1] * percentile / 100 * (1 - _AREA_ROUNDING)))
    return float(distances[order[index]])


def _distances_mm(
    start: Surface, end: Surface, *, spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Of each element of `start` from the nearest one of `end`."""
    both = np.concatenate([start.corners, end.corners])
    lowest, shape = both.min(axis=0), np.ptp(both, axis=0) + 1
    if len(start.corners) * _SPARSE < math.prod(shape):
        spacing = np.asarray(spacing_mm, np.float64)
        distances, _ = KDTree(end.corners * spacing).query(start.corners * spacing)
        return np.asarray(distances)
    elsewhere = np.ones(shape, bool)
    elsewhere[tuple((end.corners - lowest).T)] = False
    found = distance_transform_edt(elsewhere, sampling=spacing_mm)
    return np.asarray(found[tuple((start.corners - lowest).T)])


def _from(corner: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(at, at + length) for at, length in zip(corner, shape, strict=True))
