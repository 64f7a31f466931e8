"""How each data source names its folders and files: one frozen value of a few lines a source.

A layout says how deep the case folders are, which part of a folder's name is the patient, and how
the files are called. A further year of a challenge is one more value here and its name in
`medfl.config.site.Layout`; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medfl.config.site import LabelScheme, Layout, Modality


@dataclass(frozen=True, kw_only=True)
class LayoutRule:
    """How one data source names its folders and files.

    Attributes:
        groups: Folders between the root and the case folders; empty where there are none.
        case_folder: Pattern of a case folder's name; its group ``patient`` is the patient's id, so
            that several timepoints of one person stay one patient.
        modalities: Modality -> ending of the file's name, after ``<case folder>_``.
        mask: Ending of the mask's name.
        odd_mask: Pattern of masks published under another name; empty where there are none.
        label_schemes: What mask values can mean in this layout.
    """

    groups: tuple[str, ...] = ()
    case_folder: str
    modalities: Mapping[Modality, str]
    mask: str = "seg"
    odd_mask: str = ""
    label_schemes: tuple[LabelScheme, ...]


_BRATS_FILES: Mapping[Modality, str] = MappingProxyType(
    {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
)

LAYOUTS: Mapping[Layout, LayoutRule] = MappingProxyType(
    {
        "brats2018": LayoutRule(
            groups=("HGG", "LGG"),
            case_folder=r"(?P<patient>Brats18_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d+",
            modalities=_BRATS_FILES,
            label_schemes=("brats",),
        ),
        "brats2019": LayoutRule(
            groups=("HGG", "LGG"),
            case_folder=r"(?P<patient>BraTS19_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d+",
            modalities=_BRATS_FILES,
            label_schemes=("brats",),
        ),
        "brats2020": LayoutRule(
            case_folder=r"(?P<patient>BraTS20_[A-Za-z]+_\d+)",
            modalities=_BRATS_FILES,
            odd_mask=r".*_Segm",  # case 355 was published with its original file name
            label_schemes=("brats",),
        ),
        "brats2021": LayoutRule(
            case_folder=r"(?P<patient>BraTS2021_\d+)",
            modalities=_BRATS_FILES,
            label_schemes=("brats",),
        ),
        "lgg": LayoutRule(
            case_folder=r"(?P<patient>TCGA_[A-Za-z0-9]+_[A-Za-z0-9]+)",
            modalities=MappingProxyType({"t1n": "t1", "t1c": "t1ce", "t2f": "flair"}),
            label_schemes=("lgg",),
        ),
    }
)
