"""Label values of a mask and the tumour regions they make up, after a `label_scheme`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfl.config.site import MaskScheme, Region
from medfl.data.label_schemes import require_regions, scheme_name, scheme_of, scheme_values
from medfl.data.label_values import judge_labels
from medfl.data.written_labels import written_labels
from medfl.errors import DataError

LabelArray = TypeVar("LabelArray", Tensor, NDArray[np.generic])


def regions_of(
    label_DHW: LabelArray,
    *,
    scheme: MaskScheme,
    regions: Sequence[Region],
) -> LabelArray:
    """Turn a mask into one binary channel a region.

    Args:
        label_DHW: Label values, of any numeric type.
        scheme: What the values mean.
        regions: The wanted channels, in this order.

    Returns:
        uint8 multi-hot regions_RDHW of the same kind (tensor or array) as the mask.

    Raises:
        DataError: If the mask holds a fractional value, a value outside the scheme, or the scheme
            lacks a region.
    """
    require_regions(regions, scheme=scheme)
    whole = whole_labels(label_DHW, scheme=scheme)
    channels = [
        torch.stack([whole == value for value in scheme_of(scheme).regions[region]]).any(dim=0)
        for region in regions
    ]
    multi_hot = torch.stack(channels).to(torch.uint8)
    return multi_hot if isinstance(label_DHW, Tensor) else multi_hot.numpy()


def whole_labels(label_DHW: Tensor | NDArray[np.generic], *, scheme: MaskScheme) -> Tensor:
    """Round label values to uint8, and check that the scheme knows each.

    Raises:
        DataError: If a value is fractional, not finite, or outside the scheme.
    """
    values = label_DHW.numpy(force=True) if isinstance(label_DHW, Tensor) else label_DHW
    whole, wrong = judge_labels(values, scheme=scheme)
    if wrong:
        shown = ", ".join(f"{value:g}" for value in wrong)
        raise DataError(
            f"expected mask values out of {sorted(scheme_values(scheme))} (label_scheme "
            f"{scheme_name(scheme)!r}), found {shown}. Correct the mask or the site's label_scheme."
        )
    found = torch.from_numpy(whole)
    return found.to(label_DHW.device) if isinstance(label_DHW, Tensor) else found


def labels_from_regions(
    regions_RDHW: LabelArray,
    *,
    scheme: MaskScheme,
    regions: Sequence[Region],
) -> LabelArray:
    """Write predicted regions as one mask; the inverse of `regions_of` for nested regions.

    Where regions contradict each other, the innermost one decides (ET, then TC, then WT).

    Args:
        regions_RDHW: Multi-hot regions; non-zero means inside.
        scheme: What the written values shall mean.
        regions: The region of each channel.

    Returns:
        uint8 label_DHW of the same kind (tensor or array) as the regions.

    Raises:
        DataError: If the scheme lacks one of the regions.
    """
    require_regions(regions, scheme=scheme)
    label = written_labels(
        torch.as_tensor(regions_RDHW) != 0, regions=regions, written=scheme_of(scheme).written
    )
    return label if isinstance(regions_RDHW, Tensor) else label.numpy()
