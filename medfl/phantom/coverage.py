"""What of a head reaches the file: the part that was scanned, and what skull stripping left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfl.phantom.grid import HeadGrid

BoolArray = NDArray[np.bool_]

# Where slices are missing: below, above, in front, behind.
_ENDS = ((0, 0, -1), (0, 0, 1), (0, 1, 0), (0, -1, 0))
_HOW_OFTEN = (0.4, 0.2, 0.3, 0.1)
# Head millimetres from the middle of the brain to the nearest and farthest plane.
_NEAREST, _FARTHEST = 25.0, 70.0
_REMAINS_WAVELENGTH = 25.0


def field_of_view(
    grid: HeadGrid, lesion: BoolArray, *, cut: float, rng: np.random.Generator
) -> BoolArray:
    """Which voxels were scanned: all, or all but an end of the head beyond a slightly tilted plane.

    Args:
        grid: Where the voxels are.
        lesion: Its voxels (D, H, W); half of them at least are scanned.
        cut: Probability of a missing end.
        rng: Source of the plane; not used if `cut` is 0.
    """
    if cut == 0 or rng.random() >= cut:
        return np.ones(grid.shape, np.bool_)
    end = np.array(_ENDS[rng.choice(len(_ENDS), p=_HOW_OFTEN)])
    along = np.tensordot((end + rng.normal(0, 0.15, 3)).astype(np.float32), grid.points, axes=1)
    plane = max(rng.uniform(_NEAREST, _FARTHEST), float(np.median(along[lesion])))
    seen: BoolArray = along <= np.float32(plane)
    return seen


def stripped(
    grid: HeadGrid, brain: BoolArray, *, remains: float, rng: np.random.Generator
) -> BoolArray:
    """What skull stripping keeps: the brain, and patches around it.

    Args:
        grid: Where the voxels are.
        brain: Voxels (D, H, W) of the brain.
        remains: Typical reach of the patches beyond the brain, in head millimetres.
        rng: Source of the patches; not used if `remains` is 0.
    """
    if remains == 0:
        return brain
    reach = remains * np.maximum(grid.smooth_field(wavelength=_REMAINS_WAVELENGTH, rng=rng), 0)
    kept: BoolArray = ndimage.distance_transform_edt(~brain, sampling=grid.step) <= reach
    return kept
