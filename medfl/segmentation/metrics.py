"""Dice, surface Dice and the 95th percentile of the Hausdorff distance, region by region.

A region may be absent from truth, prediction or both. Both absent is a perfect answer: Dice 1 and
distance 0. One absent is the worst answer: Dice 0 and the diagonal of the image, a distance that no
two voxels of it exceed. BraTS scores absent regions alike, with 374 mm for its images of 373 mm.

The classic distance counts every voxel of a surface once, as MONAI does; the lesion-wise one and
the surface Dice weigh surface elements by their area, as their authors do.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from numpy.typing import NDArray
from torch import Tensor

from medfl.config.site import Region
from medfl.segmentation.surfaces import surface_dice, surface_of

_PERCENTILE = 95


@dataclass(frozen=True, kw_only=True)
class RegionScore:
    """How well one region of one case was segmented.

    Attributes:
        region: The region.
        dice: In [0, 1].
        hd95_mm: Larger of the two directed 95th percentiles of surface distance, in millimetres;
            None where it was not computed.
    """

    region: Region
    dice: float
    hd95_mm: float | None


def expect_masks(
    predicted_RDHW: Tensor,
    truth_RDHW: Tensor,
    *,
    regions: Sequence[Region],
    spacing_mm: Sequence[float],
) -> None:
    """Refuse what cannot be compared.

    Args:
        predicted_RDHW: Multi-hot segmentation, one channel a region.
        truth_RDHW: Truth of the same shape.
        regions: Names of the channels.
        spacing_mm: Millimetres per voxel along D, H and W.

    Raises:
        ValueError: If shapes differ, a channel has no name, a value is neither 0 nor 1, or the
            spacing is none.
    """
    expected = (len(regions), *truth_RDHW.shape[-3:])
    for mask in (predicted_RDHW, truth_RDHW):
        if mask.ndim != 4 or tuple(mask.shape) != expected:
            raise ValueError(f"Expected masks of shape {expected}, found {tuple(mask.shape)}.")
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("Expected masks of zeros and ones, found other values.")
    if len(spacing_mm) != 3 or not all(0 < millimetres < math.inf for millimetres in spacing_mm):
        raise ValueError(f"Expected three positive spacings, found {list(spacing_mm)}.")


def score(
    predicted_RDHW: Tensor,
    truth_RDHW: Tensor,
    *,
    regions: Sequence[Region],
    spacing_mm: Sequence[float],
    with_hd95: bool = True,
) -> tuple[RegionScore, ...]:
    """Compare one case's segmentation with the truth.

    Args:
        predicted_RDHW: Multi-hot segmentation (not probabilities), one channel a region.
        truth_RDHW: Truth of the same shape.
        regions: Names of the channels.
        spacing_mm: Millimetres per voxel along D, H and W.
        with_hd95: False leaves the distance out, which takes most of the time.

    Returns:
        One score a region, in the order of `regions`.

    Raises:
        ValueError: If shapes differ, a channel has no name, or a value is neither 0 nor 1.
    """
    expect_masks(predicted_RDHW, truth_RDHW, regions=regions, spacing_mm=spacing_mm)
    predicted, truth = predicted_RDHW.detach().bool(), truth_RDHW.detach().bool()
    dice = compute_dice(predicted[None], truth[None], ignore_empty=False)[0]
    return tuple(
        RegionScore(
            region=region,
            dice=float(dice[channel]),
            hd95_mm=_hd95(predicted[channel], truth[channel], spacing_mm) if with_hd95 else None,
        )
        for channel, region in enumerate(regions)
    )


def surface_dices(
    predicted_RDHW: Tensor,
    truth_RDHW: Tensor,
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> tuple[float, ...]:
    """Part of the area of both surfaces that lies within a tolerance of the other, by region.

    See `medfl.segmentation.surfaces.surface_dice`. Absent regions as everywhere here: both absent
    is 1, one absent is 0.

    Args:
        predicted_RDHW: Multi-hot segmentation.
        truth_RDHW: Truth of the same shape.
        spacing_mm: Millimetres per voxel along D, H and W.
        tolerance_mm: How far apart two surfaces may be and still agree.

    Returns:
        One value in [0, 1] a region.
    """
    values = []
    for predicted, truth in zip(predicted_RDHW.bool(), truth_RDHW.bool(), strict=True):
        present = (bool(predicted.any()), bool(truth.any()))
        if present != (True, True):
            values.append(float(present == (False, False)))
            continue
        both = (
            surface_of(mask.cpu().numpy(), spacing_mm=spacing_mm) for mask in (predicted, truth)
        )
        values.append(surface_dice(*both, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm))
    return tuple(values)


def volumes_ml(mask_RDHW: Tensor, *, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Volume of each region in millilitres.

    Args:
        mask_RDHW: Multi-hot segmentation.
        spacing_mm: Millimetres per voxel along D, H and W.
    """
    voxel_ml = math.prod(spacing_mm) / 1000
    return tuple(int(mask.bool().sum()) * voxel_ml for mask in mask_RDHW)


def _hd95(predicted_DHW: Tensor, truth_DHW: Tensor, spacing_mm: Sequence[float]) -> float:
    present = (bool(predicted_DHW.any()), bool(truth_DHW.any()))
    if present == (False, False):
        return 0.0
    if present != (True, True):
        return math.hypot(
            *(voxels * mm for voxels, mm in zip(truth_DHW.shape, spacing_mm, strict=True))
        )
    with warnings.catch_warnings():
        # MONAI 1.6 passes an argument of its own that it has deprecated.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        value = compute_hausdorff_distance(
            predicted_DHW[None, None],
            truth_DHW[None, None],
            include_background=True,
            percentile=_PERCENTILE,
            spacing=list(spacing_mm),
        )
    return float(value)


def dice_by_level(
    image: NDArray[np.float32], inside: NDArray[np.bool_], *, levels: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Dice of `image > level` against a mask, for each of the levels; 1 where both are empty.

    Args:
        image: Brightness, of any shape.
        inside: The mask, of the same shape.
        levels: One row of levels.
    """
    everywhere, tumour = np.sort(image, axis=None), np.sort(image[inside])
    brighter = everywhere.size - np.searchsorted(everywhere, levels, side="right")
    hits = tumour.size - np.searchsorted(tumour, levels, side="right")
    total = brighter + tumour.size
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0)
