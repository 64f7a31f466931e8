"""How each data source names its folders and files: one frozen value of a few lines a source.

A rule gives, for every modality and for the mask, where its file lies below the root. A further
year of a challenge is one more value here and its name in `medfl.config.site.Layout`; nothing else
changes. What no value fits is written in the site's own file (`layout = "custom"`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from medfl.config.site import (
    KNOWN_SCHEMES,
    MODALITY_ORDER,
    LabelScheme,
    Layout,
    Modality,
    SiteData,
)

_NAMES = re.compile(r"\{(case|patient|session)\}|(\*)")


@dataclass(frozen=True, kw_only=True)
class LayoutRule:
    """How one data source names its folders and files.

    A path is written below the root, with ``/`` between names and without ``.nii`` or ``.nii.gz``.
    In it ``{case}``, ``{patient}`` and ``{session}`` stand for names that are the same in all of
    it, and ``*`` for any text within one name. Where a file may lie at several places, each has a
    path of its own.

    Attributes:
        patient: Pattern of a name that is a person: of ``{patient}``, or within ``{case}`` the
            group ``patient``, so that several timepoints of one person stay one patient.
        case: Pattern of ``{case}``, with a group ``patient``; empty where cases have no name of
            their own, but follow from patient and session.
        session: Pattern of ``{session}``; empty where there is none.
        images: Modality -> paths of its file.
        channels: Modality -> its volume in a 4-D file; empty where a file holds one modality.
        masks: Paths of the mask.
        other_masks: Pattern of what stands in the names of masks that are not a tumour's.
        numbers: Modality -> its number where ``dataset.json`` names them by number.
        held_apart: Folder with images of a test set, whose cases must not train.
        ignored: Folders that hold no patients.
        label_schemes: What mask values can mean in this layout.
    """

    patient: str = ""
    case: str = ""
    session: str = ""
    images: Mapping[Modality, tuple[str, ...]]
    channels: Mapping[Modality, int] = field(default_factory=dict)
    masks: tuple[str, ...]
    other_masks: str = ""
    numbers: Mapping[Modality, int] = field(default_factory=dict)
    held_apart: str = ""
    ignored: frozenset[str] = frozenset()
    label_schemes: tuple[LabelScheme, ...]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that the layout has, in the fixed order."""
        return tuple(modality for modality in MODALITY_ORDER if modality in self.images)

    @property
    def paths(self) -> tuple[str, ...]:
        """All of its paths."""
        return (*(path for paths in self.images.values() for path in paths), *self.masks)

    def is_other_mask(self, stem: str) -> bool:
        """Whether a file at a path of `masks` is called as something else than a tumour."""
        return bool(self.other_masks and re.search(self.other_masks, stem, re.IGNORECASE))

    def pattern(self, name: str, *, known: Mapping[str, str], ignore_case: bool) -> re.Pattern[str]:
        """A pattern of one name of a path.

        Args:
            name: Between two ``/`` of a path.
            known: What its stand-ins were found to be further up the path.
            ignore_case: Whether capital letters matter.
        """
        parts: list[str] = []
        met: set[str] = set()
        position = 0
        for match in _NAMES.finditer(name):
            parts.append(re.escape(name[position : match.start()]))
            position = match.end()
            stand_in = match[1]
            if stand_in is None:
                parts.append(".*")
            elif stand_in in known:
                parts.append(re.escape(known[stand_in]))
            elif stand_in in met:
                parts.append(f"(?P={stand_in})")
            else:
                met.add(stand_in)
                parts.append(f"(?P<{stand_in}>{getattr(self, stand_in)})")
        parts.append(re.escape(name[position:]))
        return re.compile("".join(parts), re.IGNORECASE if ignore_case else 0)


def rule_of(data: SiteData) -> LayoutRule:
    """The rule of a site's data: a known layout's, or its own."""
    if data.custom is None:
        return LAYOUTS[data.layout]
    return LayoutRule(
        case=data.custom.case,
        images={modality: (path,) for modality, path in data.custom.images.items()},
        masks=(data.custom.mask,),
        ignored=frozenset(data.custom.ignored),
        label_schemes=KNOWN_SCHEMES,
    )


def _paths(
    endings: Mapping[Modality, str], places: Sequence[str]
) -> dict[Modality, tuple[str, ...]]:
    """Modality -> each place with the modality's ending in place of ``#``."""
    return {
        modality: tuple(place.replace("#", ending) for place in places)
        for modality, ending in endings.items()
    }


_TO_2021: Mapping[Modality, str] = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
_SINCE_2023: Mapping[Modality, str] = {name: name for name in MODALITY_ORDER}
# Names of the archive's parts, where they were not merged into one folder.
_PARTS_2024 = ("training_data1_v2", "training_data_additional")

_DECATHLON_ORDER: Mapping[Modality, int] = {"t2f": 0, "t1n": 1, "t1c": 2, "t2w": 3}
_BIDS_ENDINGS: Mapping[Modality, tuple[str, ...]] = {
    "t1n": ("_T1w", "_space-*_T1w"),
    "t1c": ("_ce-*_T1w",),
    "t2w": ("_T2w", "_space-*_T2w"),
    "t2f": ("_FLAIR", "_space-*_FLAIR"),
}
# Entities of BIDS Derivatives that say what a mask is of: the brain as skull stripping leaves it,
# tissues, parts of a template. Lesions are `label-lesion`, and a tumour may have any other name.
_NOT_TUMOURS = (
    r"(?:^|_)(?:desc|label|atlas|res|seg)-(?:brain|head|skull|scalp|bet|hdbet|synthstrip|robex|"
    r"skullstrip\w*|gm|wm|csf|gray\w*|grey\w*|white\w*|aseg\w*|aparc\w*|ventricle\w*|"
    r"hemisphere\w*|cortex|ribbon|fov|eyes?)(?=_|$)"
)
_BIDS_PLACES = (
    "{patient}/anat/{patient}",
    "{patient}/{session}/anat/{patient}_{session}",
)


def _bids_images() -> dict[Modality, tuple[str, ...]]:
    return {
        modality: tuple(f"{place}{ending}" for place in _BIDS_PLACES for ending in endings)
        for modality, endings in _BIDS_ENDINGS.items()
    }


def _graded(year: str) -> LayoutRule:
    """BraTS 2018 and 2019: high and low grade in folders of their own, timepoints numbered."""
    return LayoutRule(
        case=rf"(?P<patient>{year}_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d+",
        images=_paths(_TO_2021, ["HGG/{case}/{case}_#", "LGG/{case}/{case}_#"]),
        masks=("HGG/{case}/{case}_seg", "LGG/{case}/{case}_seg"),
        label_schemes=("brats",),
    )


LAYOUTS: Mapping[Layout, LayoutRule] = MappingProxyType(
    {
        # The files that the DeepMedic project published of the 2015 challenge.
        "brats2015": LayoutRule(
            case=r"(?P<patient>brats_[A-Za-z0-9]+_pat\d+)_\d+",
            images=_paths({"t1c": "T1c", "t2f": "Flair"}, ["{case}/#_subtrMeanDivStd"]),
            masks=("{case}/OTMultiClass",),
            label_schemes=("brats2015",),
        ),
        "brats2018": _graded("Brats18"),
        "brats2019": _graded("BraTS19"),
        "brats2020": LayoutRule(
            case=r"(?P<patient>BraTS20_[A-Za-z]+_\d+)",
            images=_paths(_TO_2021, ["{case}/{case}_#"]),
            # Case 355 was published with the mask's original file name.
            masks=("{case}/{case}_seg", "{case}/*_Segm"),
            label_schemes=("brats",),
        ),
        "brats2021": LayoutRule(
            case=r"(?P<patient>BraTS2021_\d+)",
            images=_paths(_TO_2021, ["{case}/{case}_#"]),
            masks=("{case}/{case}_seg",),
            label_schemes=("brats",),
        ),
        "brats2023": LayoutRule(
            case=r"(?P<patient>BraTS-GLI-\d{5})-\d{3}",
            images=_paths(_SINCE_2023, ["{case}/{case}-#"]),
            masks=("{case}/{case}-seg",),
            label_schemes=("brats2023",),
        ),
        "brats2024": LayoutRule(
            case=r"(?P<patient>BraTS-GLI-\d{5})-\d{3}",
            images=_paths(
                _SINCE_2023,
                ["{case}/{case}-#", *(f"{part}/{{case}}/{{case}}-#" for part in _PARTS_2024)],
            ),
            masks=(
                "{case}/{case}-seg",
                *(f"{part}/{{case}}/{{case}}-seg" for part in _PARTS_2024),
            ),
            label_schemes=("brats2024",),
        ),
        "fets2022": LayoutRule(
            case=r"(?P<patient>FeTS2022_\d+)",
            images=_paths(_TO_2021, ["{case}/{case}_#"]),
            masks=("{case}/{case}_seg",),
            label_schemes=("brats",),
        ),
        "msd": LayoutRule(
            case=r"(?P<patient>BRATS_\d+)",
            images=dict.fromkeys(MODALITY_ORDER, ("imagesTr/{case}",)),
            channels=_DECATHLON_ORDER,
            masks=("labelsTr/{case}",),
            numbers=_DECATHLON_ORDER,
            held_apart="imagesTs",
            ignored=frozenset({"imagesTs"}),
            label_schemes=("msd",),
        ),
        "nnunet": LayoutRule(
            # A case's name is the user's; timepoints of one person cannot be told from it.
            case=r"(?P<patient>[A-Za-z0-9._-]+?)",
            images=_paths(
                {"t1n": "0000", "t1c": "0001", "t2w": "0002", "t2f": "0003"},
                ["imagesTr/{case}_#"],
            ),
            masks=("labelsTr/{case}",),
            numbers={"t1n": 0, "t1c": 1, "t2w": 2, "t2f": 3},
            held_apart="imagesTs",
            ignored=frozenset({"imagesTs", "labelsTs"}),
            label_schemes=("nnunet",),
        ),
        # The Brain Imaging Data Structure 1.10: masks are derivatives (dseg: discrete labels, mask:
        # one label), beside the registered images or in a folder of their own.
        "bids": LayoutRule(
            patient=r"sub-[A-Za-z0-9]+",
            session=r"ses-[A-Za-z0-9]+",
            images=_bids_images(),
            masks=tuple(
                f"{above}{place}_*{suffix}"
                for above in ("", "derivatives/", "derivatives/*/")
                for place in _BIDS_PLACES
                for suffix in ("dseg", "mask")
            ),
            other_masks=_NOT_TUMOURS,
            ignored=frozenset(
                {"derivatives", "sourcedata", "rawdata", "code", "phenotype", "stimuli", "fmap"}
                | {"func", "dwi", "perf"}
            ),
            label_schemes=KNOWN_SCHEMES,
        ),
        "lgg": LayoutRule(
            case=r"(?P<patient>TCGA_[A-Za-z0-9]+_[A-Za-z0-9]+)",
            images=_paths({"t1n": "t1", "t1c": "t1ce", "t2f": "flair"}, ["{case}/{case}_#"]),
            masks=("{case}/{case}_seg",),
            label_schemes=("lgg",),
        ),
    }
)
