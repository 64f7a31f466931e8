"""What the values of a mask mean, by source.

The same value means different tissue in different sources, and values alone cannot tell the sources
apart. So a site names its `label_scheme`, and every mask is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from medfl.config.site import REGION_ORDER, LabelScheme, MaskScheme, OwnLabels, Region, Tissue
from medfl.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Scheme:
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
_EDEMA_FIRST = Scheme(
    regions={"TC": (2, 3), "WT": (1, 2, 3), "ET": (3,)}, written=(("WT", 1), ("TC", 2), ("ET", 3))
)
SCHEMES: Mapping[LabelScheme, Scheme] = MappingProxyType(
    {
        # BraTS 2018 to 2021, FeTS 2022: 1 necrotic and non-enhancing core, 2 edema, 4 enhancing.
        "brats": Scheme(
            regions={"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)},
            written=(("WT", 2), ("TC", 1), ("ET", 4)),
        ),
        # 3 is the non-enhancing solid core, which later years count to 1.
        "brats2015": Scheme(
            regions={"TC": (1, 3, 4), "WT": (1, 2, 3, 4), "ET": (4,)},
            written=(("WT", 2), ("TC", 1), ("ET", 4)),
        ),
        # The enhancing tumour moved from 4 to 3.
        "brats2023": Scheme(
            regions={"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)},
            written=(("WT", 2), ("TC", 1), ("ET", 3)),
        ),
        # After treatment; 4 is the resection cavity, which is no tumour.
        "brats2024": Scheme(
            regions={"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)},
            written=(("WT", 2), ("TC", 1), ("ET", 3)),
            others=(4,),
        ),
        # Children, since 2024: 1 enhancing, 2 non-enhancing, 3 cystic, 4 edema (arXiv:2404.15009).
        "brats-ped": Scheme(
            regions={"TC": (1, 2, 3), "WT": (1, 2, 3, 4), "ET": (1,)},
            written=(("WT", 4), ("TC", 2), ("ET", 1)),
        ),
        # The gross tumour volume of a meningioma: a core, which has no edema around it in the mask
        # and whose enhancing part has no value of its own (arXiv:2405.18383).
        "brats-men-rt": Scheme(regions={"TC": (1,)}, written=(("TC", 1),)),
        # As DeepBraTumIA writes: 1 core without enhancement, 2 enhancing, 3 edema.
        "lumiere": Scheme(
            regions={"TC": (1, 2), "WT": (1, 2, 3), "ET": (2,)},
            written=(("WT", 3), ("TC", 1), ("ET", 2)),
        ),
        "msd": _EDEMA_FIRST,
        "nnunet": _EDEMA_FIRST,
        # The FLAIR abnormality only.
        "lgg": Scheme(regions={"WT": (1,)}, written=(("WT", 1),)),
    }
)


TISSUES_OF: Mapping[Region, tuple[Tissue, ...]] = {
    "TC": ("core", "enhancing"),
    "WT": ("edema", "tumour", "core", "enhancing"),
    "ET": ("enhancing",),
}
"""Region -> the tissues that make it up, those first as which a predicted region is written."""


def scheme_of(scheme: MaskScheme) -> Scheme:
    """The rule of a known scheme, or of labels that a site has described by itself."""
    return SCHEMES[scheme] if isinstance(scheme, str) else _own_scheme(scheme)


def scheme_name(scheme: MaskScheme) -> str:
    """What a scheme is called in messages."""
    return scheme if isinstance(scheme, str) else "custom"


def _own_scheme(labels: OwnLabels) -> Scheme:
    values: dict[Tissue, list[int]] = {}
    for value, tissue in labels:
        values.setdefault(tissue, []).append(value)
    regions = {
        region: tuple(sorted(v for tissue in inside for v in values.get(tissue, ())))
        for region, inside in TISSUES_OF.items()
    }
    shown = {region: inside for region, inside in regions.items() if inside}
    written = [
        (region, next(values[tissue][0] for tissue in TISSUES_OF[region] if tissue in values))
        for region in ("WT", "TC", "ET")
        if region in shown
    ]
    return Scheme(regions=shown, written=tuple(written), others=tuple(values.get("background", ())))


def scheme_regions(scheme: MaskScheme) -> tuple[Region, ...]:
    """The regions that masks of a scheme can show, in the fixed order TC, WT, ET."""
    return tuple(region for region in REGION_ORDER if region in scheme_of(scheme).regions)


def scheme_values(scheme: MaskScheme) -> frozenset[int]:
    """All label values of a scheme, the background's 0 included."""
    rule = scheme_of(scheme)
    return frozenset({0, *rule.others}.union(*rule.regions.values()))


def require_regions(regions: Sequence[Region], *, scheme: MaskScheme) -> None:
    """Check that masks of `scheme` can show every one of `regions`.

    Raises:
        DataError: If they cannot.
    """
    available = scheme_regions(scheme)
    missing = [region for region in regions if region not in available]
    if missing:
        raise DataError(
            f"label_scheme {scheme_name(scheme)!r}: expected regions out of {list(available)}, "
            f"found {missing}. Use a study whose regions this site's masks can show."
        )
