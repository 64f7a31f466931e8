"""Predicted regions as one mask of label values; bundles carry a copy of this module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def written_labels(
    inside_RDHW: Tensor, *, regions: Sequence[str], written: Sequence[tuple[str, int]]
) -> Tensor:
    """Write regions over each other.

    Args:
        inside_RDHW: Boolean, one channel a region.
        regions: The region of each channel.
        written: Region and the label that it is written as, the outermost first: later ones
            overwrite. Regions without a channel are left out.

    Returns:
        uint8 label_DHW; 0 outside of all regions.
    """
    label = torch.zeros(inside_RDHW.shape[1:], dtype=torch.uint8, device=inside_RDHW.device)
    for region, value in written:
        if region in regions:
            label[inside_RDHW[list(regions).index(region)]] = value
    return label
