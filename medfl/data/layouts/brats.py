"""The Brain Tumor Segmentation Challenges and their sister tasks.

A further year is one more value here and its name in `medfl.config.layouts.Layout`. Since 2023
almost all tasks are named alike, ``BraTS-<task>-<patient>-<timepoint>``. What the values mean
changed with years rather than with names: a task lists every scheme that it was published in.

Names and values were compared with public code that reads the archives. The tasks' papers: glioma
after treatment, arXiv:2405.18368; MEN-RT, 2405.18383; MET, 2306.00838; PED, 2404.15009; SSA,
2305.19369.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from medfl.config.site import MODALITY_ORDER, LabelScheme, Layout, Modality
from medfl.data.layouts.rule import LayoutRule, placed

_TO_2021: Mapping[Modality, str] = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
_SINCE_2023: Mapping[Modality, str] = {name: name for name in MODALITY_ORDER}
# Names of the archives' parts, where they were not merged into one folder.
_PARTS_2024 = ("training_data1_v2", "training_data_additional")
_PARTS_2025 = (*_PARTS_2024, "BraTS2025-GLI-PRE-Challenge-TrainingData")
_PART_MET_2025 = "UCSD - Training"


def _graded(year: str) -> LayoutRule:
    """BraTS 2018 and 2019: high and low grade in folders of their own, timepoints numbered."""
    return LayoutRule(
        case=rf"(?P<patient>{year}_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d+",
        images=placed(_TO_2021, ["HGG/{case}/{case}_#", "LGG/{case}/{case}_#"]),
        masks=("HGG/{case}/{case}_seg", "LGG/{case}/{case}_seg"),
        label_schemes=("brats",),
    )


def _task(name: str, *label_schemes: LabelScheme, parts: tuple[str, ...] = ()) -> LayoutRule:
    """A task since 2023: four modalities, and timepoints after a hyphen."""
    places = ["{case}/{case}-#", *(f"{part}/{{case}}/{{case}}-#" for part in parts)]
    return LayoutRule(
        case=rf"(?P<patient>BraTS-{name}-\d{{5}})-\d{{3}}",
        images=placed(_SINCE_2023, places),
        masks=tuple(place.replace("#", "seg") for place in places),
        label_schemes=label_schemes,
    )


BRATS: Mapping[Layout, LayoutRule] = MappingProxyType(
    {
        # The files that the DeepMedic project published of the 2015 challenge.
        "brats2015": LayoutRule(
            case=r"(?P<patient>brats_[A-Za-z0-9]+_pat\d+)_\d+",
            images=placed({"t1c": "T1c", "t2f": "Flair"}, ["{case}/#_subtrMeanDivStd"]),
            masks=("{case}/OTMultiClass",),
            label_schemes=("brats2015",),
        ),
        "brats2018": _graded("Brats18"),
        "brats2019": _graded("BraTS19"),
        "brats2020": LayoutRule(
            case=r"(?P<patient>BraTS20_[A-Za-z]+_\d+)",
            images=placed(_TO_2021, ["{case}/{case}_#"]),
            # Case 355 was published with the mask's original file name.
            masks=("{case}/{case}_seg", "{case}/*_Segm"),
            label_schemes=("brats",),
        ),
        "brats2021": LayoutRule(
            case=r"(?P<patient>BraTS2021_\d+)",
            images=placed(_TO_2021, ["{case}/{case}_#"]),
            masks=("{case}/{case}_seg",),
            label_schemes=("brats",),
        ),
        "brats2023": _task("GLI", "brats2023"),
        # After treatment; `-100`, `-101` are timepoints.
        "brats2024": _task("GLI", "brats2024", parts=_PARTS_2024),
        # Before (`-000`) and after treatment together, some people in both.
        "brats2025": _task("GLI", "brats2024", parts=_PARTS_2025),
        # Generalisability across tumours: its names tell no timepoints.
        "brats-goat": LayoutRule(
            case=r"(?P<patient>BraTS-GoAT-\d{5})",
            images=placed(_SINCE_2023, ["{case}/{case}-#"]),
            masks=("{case}/{case}-seg",),
            label_schemes=("brats2023",),
        ),
        "brats-men": _task("MEN", "brats2023"),
        # One post-contrast image, with the skull, and the gross tumour volume.
        "brats-men-rt": LayoutRule(
            case=r"(?P<patient>BraTS-MEN-RT-\d{4})-\d+",
            images=placed({"t1c": "t1c"}, ["{case}/{case}_#", "{case}/{case}-#"]),
            masks=("{case}/{case}_gtv", "{case}/{case}-gtv"),
            label_schemes=("brats-men-rt",),
        ),
        # Since 2025 with a resection cavity.
        "brats-met": _task("MET", "brats2023", "brats2024", parts=(_PART_MET_2025,)),
        # In 2023 with the values of the other tasks, since 2024 with four of its own.
        "brats-ped": _task("PED", "brats-ped", "brats2023"),
        "brats-ssa": _task("SSA", "brats2023", parts=("95_Glioma", "51_OtherNeoplasms")),
        "fets2022": LayoutRule(
            case=r"(?P<patient>FeTS2022_\d+)",
            images=placed(_TO_2021, ["{case}/{case}_#"]),
            masks=("{case}/{case}_seg",),
            label_schemes=("brats",),
        ),
    }
)
