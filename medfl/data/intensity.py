"""Brightness on one scale, from each scan alone.

MRI has no unit, so every scan is divided by its own typical head brightness: 0 is air, 1 is typical
tissue. Nothing is learnt from a cohort, so nothing of a cohort is released.

Why not the usual z-score over non-zero voxels: in whole-head 8-bit scans air is 0 to 6 rather than
0, and its share of the volume differs from scan to scan, which moves mean and deviation. The voxels
brighter than the scan's own mean are head in whole-head and in skull-stripped scans alike, and
their median ignores fat and vessels. On 90 patients of five hospitals one global FLAIR threshold
then reaches a Dice of 0.188, against 0.173 after the z-score and 0.146 on raw values. And since air
is 0, every zero padding (crops, windows, convolutions) continues the scan with air.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Percentiles of the non-zero voxels beyond which values are clipped: single hot voxels say nothing.
CLIPPED_PERCENTILES = (0.5, 99.5)


def normalise_scan(image_DHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring one modality of one scan to the scale 0 = air, 1 = typical tissue.

    Args:
        image_DHW: Finite brightness in the scanner's own unit.

    Returns:
        float32 of the same shape, at least 0; all 0 where the scan is constant.
    """
    signal = image_DHW[image_DHW != _air(image_DHW)]
    if signal.size == 0:
        return np.zeros_like(image_DHW, dtype=np.float32)
    low, high = np.percentile(signal, CLIPPED_PERCENTILES)
    clipped = np.clip(image_DHW, low, high)
    head = clipped[clipped > clipped.mean(dtype=np.float64)]
    tissue = float(np.median(head)) - low if head.size else 0.0
    if tissue <= 0:
        return np.zeros_like(image_DHW, dtype=np.float32)
    return np.asarray((clipped - low) / tissue, dtype=np.float32)


def _air(image_DHW: NDArray[np.float32]) -> float:
    """What was set around a head: 0, or the lowest value of a scan that was centred around 0."""
    lowest = float(image_DHW.min(initial=0))
    return lowest if lowest < 0 and not (image_DHW == 0).any() else 0.0
