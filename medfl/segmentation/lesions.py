"""Lesion-wise Dice and HD95, as the BraTS challenges of 2023 scored.

Every lesion counts the same, however small, and one that was missed or made up counts as the worst.
The truth is dilated by a few voxels; what then hangs together (by faces, edges or corners) is one
lesion, though only its own voxels are scored. A component of the prediction belongs to every lesion
whose dilated form it touches; one that touches none is a false lesion. A lesion is compared with
all components that belong to it. The score of a region is the mean over its lesions and the false
ones; a missed or false lesion has Dice 0 and a distance of 374 mm, and where there is neither, the
Dice is 1 and the distance 0. Lesions of the truth up to a smallest volume are left out, but what
was predicted for them is not false. Source: github.com/rachitsaluja/BraTS-2023-Metrics; the
challenges of 2024 and 2025 kept the idea and changed details, which are not followed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, generate_binary_structure, label
from torch import Tensor

from medfl.config.site import Region
from medfl.segmentation.metrics import expect_masks
from medfl.segmentation.surfaces import Labels, robust_hausdorff_mm, surface_of

PENALTY_MM = 374.0
"""Distance of a missed or false lesion: about the diagonal of the 240 x 240 x 155 mm of BraTS."""

_TOUCHING = generate_binary_structure(3, 3)
_DILATION = generate_binary_structure(3, 2)
_ROUNDING = 1 + 1e-5  # spacings come from an affine of float32: 50 voxels of 1 mm are 50 mm³
_PERCENTILE = 95


@dataclass(frozen=True, kw_only=True)
class LesionRule:
    """What counts as one lesion.

    The challenge's numbers of 2023 are 3 voxels and 50 mm³ for gliomas (of adults, children and
    sub-Saharan Africa), 1 voxel and 50 mm³ for meningiomas, 1 voxel and 2 mm³ for metastases.

    Attributes:
        dilation_voxels: How often the truth is dilated by one voxel, over faces and edges, to tell
            lesions apart. The challenge's images have voxels of 1 mm; so many voxels of another
            grid are another distance.
        above_mm3: Only larger lesions of the truth are scored.
    """

    dilation_voxels: int
    above_mm3: float

    def __post_init__(self) -> None:
        if self.dilation_voxels < 1:
            raise ValueError(f"Expected dilation_voxels >= 1, found {self.dilation_voxels}.")
        if not 0 <= self.above_mm3 < math.inf:
            raise ValueError(f"Expected a finite above_mm3 >= 0, found {self.above_mm3}.")


GLIOMA = LesionRule(dilation_voxels=3, above_mm3=50.0)


@dataclass(frozen=True, kw_only=True)
class LesionScore:
    """How well the lesions of one region of one case were found and segmented.

    Attributes:
        region: The region.
        dice: Mean over lesions, in [0, 1].
        hd95_mm: Mean over lesions; None where it was not computed.
        found: Lesions that a component of the prediction belongs to.
        missed: Lesions without any.
        false: Components of the prediction that belong to no lesion.
    """

    region: Region
    dice: float
    hd95_mm: float | None
    found: int
    missed: int
    false: int


def score_lesions(
    predicted_RDHW: Tensor,
    truth_RDHW: Tensor,
    *,
    regions: Sequence[Region],
    spacing_mm: Sequence[float],
    rule: LesionRule = GLIOMA,
    with_hd95: bool = True,
) -> tuple[LesionScore, ...]:
    """Compare one case's segmentation with the truth, lesion by lesion.

    Args:
        predicted_RDHW: Multi-hot segmentation (not probabilities), one channel a region.
        truth_RDHW: Truth of the same shape.
        regions: Names of the channels.
        spacing_mm: Millimetres per voxel along D, H and W.
        rule: What counts as one lesion.
        with_hd95: False leaves the distance out, which takes most of the time.

    Returns:
        One score a region, in the order of `regions`.

    Raises:
        ValueError: If shapes differ, a channel has no name, or a value is neither 0 nor 1.
    """
    expect_masks(predicted_RDHW, truth_RDHW, regions=regions, spacing_mm=spacing_mm)
    pairs = (
        (predicted.bool().cpu().numpy(), truth.bool().cpu().numpy())
        for predicted, truth in zip(predicted_RDHW.detach(), truth_RDHW.detach(), strict=True)
    )
    return tuple(
        _score(*pair, region=region, spacing_mm=spacing_mm, rule=rule, with_hd95=with_hd95)
        for region, pair in zip(regions, pairs, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class _Matching:
    """Lesions of the truth and components of the prediction, both numbered from 1.

    Attributes:
        lesions_DHW: Lesion that each voxel of the truth belongs to.
        components_DHW: Component that each voxel of the prediction belongs to.
        lesion_voxels: By lesion; index 0 is unused.
        component_voxels: By component; index 0 is unused.
        pairs: One row for each lesion and component that belongs to it, ascending.
    """

    lesions_DHW: Labels
    components_DHW: Labels
    lesion_voxels: NDArray[np.int64]
    component_voxels: NDArray[np.int64]
    pairs: NDArray[np.int64]

    @property
    def dice(self) -> NDArray[np.float64]:
        """By lesion; 0 where no component belongs to it. Index 0 is unused."""
        total = len(self.lesion_voxels)
        shared = np.bincount(self.lesions_DHW[self.components_DHW > 0], minlength=total)
        predicted = np.bincount(
            self.pairs[:, 0], weights=self.component_voxels[self.pairs[:, 1]], minlength=total
        )
        dice: NDArray[np.float64] = 2 * shared / np.maximum(self.lesion_voxels + predicted, 1)
        return dice

    @property
    def false(self) -> int:
        """How many components belong to no lesion."""
        return len(self.component_voxels) - 1 - len(np.unique(self.pairs[:, 1]))


def _score(
    predicted_DHW: NDArray[np.bool_],
    truth_DHW: NDArray[np.bool_],
    *,
    region: Region,
    spacing_mm: Sequence[float],
    rule: LesionRule,
    with_hd95: bool,
) -> LesionScore:
    matching = _match(predicted_DHW, truth_DHW, dilation_voxels=rule.dilation_voxels)
    volumes_mm3 = matching.lesion_voxels * math.prod(spacing_mm)
    counted = np.flatnonzero(volumes_mm3 > rule.above_mm3 * _ROUNDING)
    found = np.intersect1d(counted, matching.pairs[:, 0])
    penalties = len(counted) - len(found) + matching.false
    total = len(found) + penalties
    hd95_mm = None
    if with_hd95:
        reached_mm = math.fsum(_distances_mm(matching, found, spacing_mm=spacing_mm))
        hd95_mm = (reached_mm + penalties * PENALTY_MM) / total if total else 0.0
    return LesionScore(
        region=region,
        dice=math.fsum(matching.dice[found]) / total if total else 1.0,
        hd95_mm=hd95_mm,
        found=len(found),
        missed=len(counted) - len(found),
        false=matching.false,
    )


def _match(
    predicted_DHW: NDArray[np.bool_], truth_DHW: NDArray[np.bool_], *, dilation_voxels: int
) -> _Matching:
    box = _box(predicted_DHW | truth_DHW)
    predicted, truth = predicted_DHW[box], truth_DHW[box]
    dilated = binary_dilation(truth, structure=_DILATION, iterations=dilation_voxels)
    # A part of the dilated truth that hangs together is exactly one lesion, dilated.
    zones, _ = label(dilated, structure=_TOUCHING)
    components, count = label(predicted, structure=_TOUCHING)
    belongs = predicted & (zones > 0)
    # One number a pair: rows of two would be sorted slowly.
    codes = np.unique(zones[belongs] * np.int64(count + 1) + components[belongs])
    return _Matching(
        lesions_DHW=np.where(truth, zones, 0),
        components_DHW=components,
        lesion_voxels=np.bincount(zones[truth], minlength=1),
        component_voxels=np.bincount(components[predicted], minlength=1),
        pairs=np.stack(np.divmod(codes, count + 1), axis=1),
    )


def _distances_mm(
    matching: _Matching, lesions: NDArray[np.int64], *, spacing_mm: Sequence[float]
) -> list[float]:
    """HD95 of each of these lesions from the components that belong to it."""
    pairs = matching.pairs[np.isin(matching.pairs[:, 0], lesions)]
    truth = _only(matching.lesions_DHW, pairs[:, 0])
    predicted = _only(matching.components_DHW, pairs[:, 1])
    # What was missed or made up lies far off and would only cost time.
    box = _box((truth > 0) | (predicted > 0))
    of_truth, of_prediction = (
        surface_of(labels[box], spacing_mm=spacing_mm) for labels in (truth, predicted)
    )
    return [
        robust_hausdorff_mm(
            of_truth.of([lesion]),
            of_prediction.of(pairs[pairs[:, 0] == lesion, 1]),
            spacing_mm=spacing_mm,
            percentile=_PERCENTILE,
        )
        for lesion in lesions
    ]


def _only(labels: Labels, kept: NDArray[np.int64]) -> Labels:
    """The image without all other components."""
    is_kept = np.zeros(int(labels.max(initial=0)) + 1, bool)
    is_kept[kept] = True
    return np.where(is_kept[labels], labels, 0)


def _box(mask_DHW: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around a mask. Whether two dilated voxels touch is decided within it."""
    box = []
    for axis in range(mask_DHW.ndim):
        others = tuple(other for other in range(mask_DHW.ndim) if other != axis)
        filled = np.flatnonzero(mask_DHW.any(axis=others))
        box.append(slice(filled[0], filled[-1] + 1) if filled.size else slice(0, 0))
    return tuple(box)
