"""Label values of a mask and the tumour regions they make up.

The same value means different tissue in different sources, and values alone cannot tell the sources
apart. So a site names its `label_scheme`, and every mask is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfl.config.site import REGION_ORDER, LabelScheme, Region
from medfl.errors import DataError

LabelArray = TypeVar("LabelArray", Tensor, NDArray[np.generic])

# How far a stored value may be from a whole number: some BraTS masks carry a scale factor a hair
# under 1, which turns 4 into 3.9999998.
LABEL_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class _Scheme:
    """What the values of one source mean.

    Attributes:
        regions: Region -> the label values whose union it is.
        written: The label that a predicted region is written as, the outermost first: later ones
            overwrite.
        others: Values that belong to no region.
    """

    regions: Mapping[Region, tuple[int, ...]]
    written: tuple[tuple[Region, int], ...]
    others: tuple[int, ...] = ()


# MSD Task01 and nnU-Net's conversion of BraTS 2021: 1 edema, 2 core without enhancement, 3
# enhancing tumour.
_EDEMA_FIRST = _Scheme(
    regions={"TC": (2, 3), "WT": (1, 2, 3), "ET": (3,)}, written=(("WT", 1), ("TC", 2), ("ET", 3))
)
_SCHEMES: Mapping[LabelScheme, _Scheme] = MappingProxyType(
    {
        # BraTS 2018 to 2021, FeTS 2022: 1 necrotic and non-enhancing core, 2 edema, 4 enhancing.
        "brats": _Scheme(
            regions={"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)},
            written=(("WT", 2), ("TC", 1), ("ET", 4)),
        ),
        # 3 is the non-enhancing solid core, which later years count to 1.
        "brats2015": _Scheme(
            regions={"TC": (1, 3, 4), "WT": (1, 2, 3, 4), "ET": (4,)},
            written=(("WT", 2), ("TC", 1), ("ET", 4)),
        ),
        # The enhancing tumour moved from 4 to 3.
        "brats2023": _Scheme(
            regions={"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)},
            written=(("WT", 2), ("TC", 1), ("ET", 3)),
        ),
        # After treatment; 4 is the resection cavity, which is no tumour.
        "brats2024": _Scheme(
            regions={"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)},
            written=(("WT", 2), ("TC", 1), ("ET", 3)),
            others=(4,),
        ),
        "msd": _EDEMA_FIRST,
        "nnunet": _EDEMA_FIRST,
        # The FLAIR abnormality only.
        "lgg": _Scheme(regions={"WT": (1,)}, written=(("WT", 1),)),
    }
)


def scheme_regions(scheme: LabelScheme) -> tuple[Region, ...]:
    """The regions that masks of a scheme can show, in the fixed order TC, WT, ET."""
    return tuple(region for region in REGION_ORDER if region in _SCHEMES[scheme].regions)


def scheme_values(scheme: LabelScheme) -> frozenset[int]:
    """All label values of a scheme, the background's 0 included."""
    rule = _SCHEMES[scheme]
    return frozenset({0, *rule.others}.union(*rule.regions.values()))


def scheme_labels(scheme: LabelScheme) -> tuple[frozenset[int], frozenset[int]]:
    """The values of enhancing tumour and those of edema; empty where a scheme has none."""
    regions = _SCHEMES[scheme].regions
    core = frozenset(regions.get("TC", ()))
    edema = frozenset(regions["WT"]) - core if core else frozenset()
    return frozenset(regions.get("ET", ())), edema


def require_regions(regions: Sequence[Region], *, scheme: LabelScheme) -> None:
    """Check that masks of `scheme` can show every one of `regions`.

    Raises:
        DataError: If they cannot.
    """
    available = scheme_regions(scheme)
    missing = [region for region in regions if region not in available]
    if missing:
        raise DataError(
            f"label_scheme {scheme!r}: expected regions out of {list(available)}, found {missing}. "
            f"Use a study whose regions this site's masks can show."
        )


def regions_of(
    label_DHW: LabelArray,
    *,
    scheme: LabelScheme,
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
        torch.stack([whole == value for value in _SCHEMES[scheme].regions[region]]).any(dim=0)
        for region in regions
    ]
    multi_hot = torch.stack(channels).to(torch.uint8)
    return multi_hot if isinstance(label_DHW, Tensor) else multi_hot.numpy()


def whole_labels(label_DHW: Tensor | NDArray[np.generic], *, scheme: LabelScheme) -> Tensor:
    """Round label values to uint8, and check that the scheme knows each.

    Raises:
        DataError: If a value is fractional, not finite, or outside the scheme.
    """
    whole, wrong = judge_labels(label_DHW, scheme=scheme)
    if wrong:
        shown = ", ".join(f"{value:g}" for value in wrong)
        raise DataError(
            f"expected mask values out of {sorted(scheme_values(scheme))} (label_scheme "
            f"{scheme!r}), found {shown}. Correct the mask or the site's label_scheme."
        )
    return whole


def judge_labels(
    label_DHW: Tensor | NDArray[np.generic],
    *,
    scheme: LabelScheme,
) -> tuple[Tensor, list[float]]:
    """Round label values, and name up to five that are fractional, not finite or not in the scheme.

    Returns:
        uint8 label_DHW, meaningless where a value is wrong, and the wrong values.
    """
    if isinstance(label_DHW, Tensor):
        labels = label_DHW.to(torch.float32)
    else:
        labels = torch.from_numpy(np.ascontiguousarray(label_DHW, dtype=np.float32))
    rounded = labels.round()
    whole = rounded.to(torch.uint8)
    # False for NaN, infinity, and what does not fit into a byte.
    sound = ((labels - rounded).abs() <= LABEL_TOLERANCE) & (whole == rounded)
    present = torch.bincount(whole[sound], minlength=256).nonzero()[:, 0].tolist()
    allowed = scheme_values(scheme)
    wrong = [float(value) for value in present if value not in allowed]
    # Sorting is slow: done for wrong values only. NumPy counts NaN once, torch each time.
    wrong += np.unique(labels[~sound].numpy()).tolist()
    return whole, wrong[:5]


def labels_from_regions(
    regions_RDHW: LabelArray,
    *,
    scheme: LabelScheme,
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
    inside = torch.as_tensor(regions_RDHW) != 0
    label = torch.zeros(inside.shape[1:], dtype=torch.uint8, device=inside.device)
    for region, value in _SCHEMES[scheme].written:
        if region in regions:
            label[inside[list(regions).index(region)]] = value
    return label if isinstance(regions_RDHW, Tensor) else label.numpy()
