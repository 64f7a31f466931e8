"""Collections of single hospitals as their archives come, most of them with several examinations.

Where people were examined more than once, the folder is not the patient. Names were compared with
public code that reads the archives: UCSF-PDGM (doi:10.7937/tcia.bdgf-8v37), UPENN-GBM
(doi:10.7937/TCIA.709X-DN49) and MU-Glioma-Post of The Cancer Imaging Archive, and LUMIERE (Suter et
al., Scientific Data 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from medfl.config.site import Layout, Modality
from medfl.data.layouts.rule import LayoutRule, placed

_UCSF: Mapping[Modality, str] = {"t1n": "T1", "t1c": "T1c", "t2w": "T2", "t2f": "FLAIR"}
_UPENN: Mapping[Modality, str] = {"t1n": "T1", "t1c": "T1GD", "t2w": "T2", "t2f": "FLAIR"}
_LUMIERE: Mapping[Modality, tuple[str, str]] = {
    "t1n": ("t1", "T1"),
    "t1c": ("ct1", "CT1"),
    "t2w": ("t2", "T2"),
    "t2f": ("flair", "FLAIR"),
}
_MU: Mapping[Modality, str] = {name: name for name in ("t1n", "t1c", "t2w", "t2f")}
_MU_NAME = "{patient}_{session}"
_WEEK = "{patient}/{session}"
_DEEP = f"{_WEEK}/DeepBraTumIA-segmentation"

COLLECTIONS: Mapping[Layout, LayoutRule] = MappingProxyType(
    {
        # Follow-ups carry `_FU001d`; whether their files repeat it differs between copies. Each
        # image also comes corrected for the bias field, which counts where the other is missing.
        "ucsf-pdgm": LayoutRule(
            case=r"(?P<patient>UCSF-PDGM-\d{4})(?:_FU\d+d)?",
            images=placed(
                _UCSF,
                [
                    f"{folder}/{{{name}}}_#{bias}"
                    for folder in ("{case}_nifti", "{case}")
                    for name in ("case", "patient")
                    for bias in ("", "_bias")
                ],
            ),
            masks=tuple(
                f"{folder}/{{{name}}}_tumor_segmentation"
                for folder in ("{case}_nifti", "{case}")
                for name in ("case", "patient")
            ),
            in_order=True,
            label_schemes=("brats",),
        ),
        # `_11` is the first examination of a person, `_21` the next, which has no mask. Masks by
        # hand for some, by a machine for all others.
        "upenn-gbm": LayoutRule(
            case=r"(?P<patient>UPENN-GBM-\d{5})_\d{2}",
            images=placed(_UPENN, ["images_structural/{case}/{case}_#", "{case}/{case}_#"]),
            masks=tuple(
                place
                for ending in ("segm", "automated_approx_segm")
                for folder in ("images_segm", "automated_segm", "{case}")
                for place in [f"{folder}/{{case}}_{ending}"]
            ),
            in_order=True,
            ignored=frozenset(
                {"images_DSC", "images_DTI", "images_structural_unstripped", "radiomic_features"}
            ),
            label_schemes=("brats",),
        ),
        # An examination's files lie on grids of their own; DeepBraTumIA brought them to one, the
        # brain only, and drew the mask. HD-GLIO-AUTO's masks mean something else and stay aside.
        "lumiere": LayoutRule(
            patient=r"Patient-\d{3}",
            session=r"week-\d{3}(?:-\d+)?",
            images={
                modality: (f"{_DEEP}/atlas/skull_strip/{atlas}_skull_strip", f"{_WEEK}/{plain}")
                for modality, (atlas, plain) in _LUMIERE.items()
            },
            masks=(
                f"{_DEEP}/atlas/segmentation/seg_mask",
                f"{_DEEP}/native/segmentation/ct1_seg_mask",
            ),
            in_order=True,
            ignored=frozenset({"HD-GLIO-AUTO-segmentation", "native"}),
            label_schemes=("lumiere",),
            schemes_disputed=True,
        ),
        "mu-glioma-post": LayoutRule(
            patient=r"PatientID_\d{4}",
            session=r"Timepoint_\d+",
            images=placed(_MU, [f"{_WEEK}/{_MU_NAME}_brain_#", f"{_WEEK}/{_MU_NAME}_#"]),
            masks=(f"{_WEEK}/{_MU_NAME}_tumorMask",),
            in_order=True,
            label_schemes=("brats2024",),
            schemes_disputed=True,
        ),
        "lgg": LayoutRule(
            case=r"(?P<patient>TCGA_[A-Za-z0-9]+_[A-Za-z0-9]+)",
            images=placed({"t1n": "t1", "t1c": "t1ce", "t2f": "flair"}, ["{case}/{case}_#"]),
            masks=("{case}/{case}_seg",),
            label_schemes=("lgg",),
        ),
    }
)
