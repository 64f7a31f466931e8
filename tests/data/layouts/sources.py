"""What each known source looks like on disk, written down by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medfl.config.site import SiteData
from medfl.data.label_schemes import scheme_values
from tests.data.conftest import head

SHAPE = (12, 14, 10)
ALL = ("t1n", "t1c", "t2w", "t2f")
BRATS = "t1 t1ce t2 flair seg"
GLI = "t1n t1c t2w t2f seg"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a release of the data looks like, written down by hand.

    Attributes:
        cases: Case -> the files that it has, below the root, without suffix: images, then mask.
        patients: The people in it.
    """

    modalities: tuple[str, ...]
    scheme: str
    cases: dict[str, list[str]]
    patients: list[str]


def _folders(cases: str, endings: str, sign: str = "_") -> dict[str, list[str]]:
    """One folder a case, whose name its files repeat."""
    return {
        folder.split("/")[-1]: [
            f"{folder}/{folder.split('/')[-1]}{sign}{ending}" for ending in endings.split()
        ]
        for folder in cases.split()
    }


SOURCES = {
    "brats2015": Source(
        modalities=("t1c", "t2f"),
        scheme="brats2015",
        cases={
            name: [
                f"{name}/T1c_subtrMeanDivStd",
                f"{name}/Flair_subtrMeanDivStd",
                f"{name}/OTMultiClass",
            ]
            for name in ("brats_2013_pat0001_1", "brats_tcia_pat105_1")
        },
        patients=["brats_2013_pat0001", "brats_tcia_pat105"],
    ),
    "brats2018": Source(
        modalities=ALL,
        scheme="brats",
        cases=_folders(
            "HGG/Brats18_TCIA08_469_1 LGG/Brats18_2013_0_1 HGG/Brats18_CBICA_AAB_1", BRATS
        ),
        patients=["Brats18_2013_0", "Brats18_CBICA_AAB", "Brats18_TCIA08_469"],
    ),
    "brats2019": Source(
        modalities=ALL,
        scheme="brats",
        cases=_folders(
            "HGG/BraTS19_CBICA_AAB_1 LGG/BraTS19_TMC_06290_1 HGG/BraTS19_2013_2_1", BRATS
        ),
        patients=["BraTS19_2013_2", "BraTS19_CBICA_AAB", "BraTS19_TMC_06290"],
    ),
    "brats2020": Source(
        modalities=ALL,
        scheme="brats",
        cases=_folders("BraTS20_Training_001 BraTS20_Training_002 BraTS20_Training_369", BRATS),
        patients=["BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_369"],
    ),
    "brats2021": Source(
        modalities=ALL,
        scheme="brats",
        cases=_folders("BraTS2021_00000 BraTS2021_00002 BraTS2021_01666", BRATS),
        patients=["BraTS2021_00000", "BraTS2021_00002", "BraTS2021_01666"],
    ),
    "brats2023": Source(
        modalities=ALL,
        scheme="brats2023",
        cases=_folders("BraTS-GLI-00000-000 BraTS-GLI-01666-000", GLI, "-"),
        patients=["BraTS-GLI-00000", "BraTS-GLI-01666"],
    ),
    "brats2024": Source(
        modalities=ALL,
        scheme="brats2024",
        cases=_folders(
            "training_data1_v2/BraTS-GLI-00005-100 training_data1_v2/BraTS-GLI-00005-101 "
            "training_data_additional/BraTS-GLI-03000-100 BraTS-GLI-00006-100",
            GLI,
            "-",
        ),
        patients=["BraTS-GLI-00005", "BraTS-GLI-00006", "BraTS-GLI-03000"],
    ),
    "brats2025": Source(
        modalities=ALL,
        scheme="brats2024",
        cases=_folders(
            "training_data1_v2/BraTS-GLI-00005-100 "
            "BraTS2025-GLI-PRE-Challenge-TrainingData/BraTS-GLI-00005-000 BraTS-GLI-00006-001",
            GLI,
            "-",
        ),
        patients=["BraTS-GLI-00005", "BraTS-GLI-00006"],
    ),
    "brats-goat": Source(
        modalities=ALL,
        scheme="brats2023",
        cases=_folders("BraTS-GoAT-00002 BraTS-GoAT-02610", GLI, "-"),
        patients=["BraTS-GoAT-00002", "BraTS-GoAT-02610"],
    ),
    "brats-men": Source(
        modalities=ALL,
        scheme="brats2023",
        cases=_folders("BraTS-MEN-00004-000 BraTS-MEN-00008-000", GLI, "-"),
        patients=["BraTS-MEN-00004", "BraTS-MEN-00008"],
    ),
    "brats-men-rt": Source(
        modalities=("t1c",),
        scheme="brats-men-rt",
        cases={
            **_folders("BraTS-MEN-RT-0004-1 BraTS-MEN-RT-0402-1", "t1c gtv"),
            **_folders("BraTS-MEN-RT-0402-2", "t1c gtv", "-"),
        },
        patients=["BraTS-MEN-RT-0004", "BraTS-MEN-RT-0402"],
    ),
    "brats-met": Source(
        modalities=ALL,
        scheme="brats2024",
        cases={
            name: [f"{part}{name}/{name}-{ending}" for ending in GLI.split()]
            for part, name in (
                ("", "BraTS-MET-00002-000"),
                ("UCSD - Training/", "BraTS-MET-01094-002"),
                ("UCSD - Training/", "BraTS-MET-01094-003"),
            )
        },
        patients=["BraTS-MET-00002", "BraTS-MET-01094"],
    ),
    "brats-ped": Source(
        modalities=ALL,
        scheme="brats-ped",
        cases=_folders("BraTS-PED-00002-000 BraTS-PED-00255-000", GLI, "-"),
        patients=["BraTS-PED-00002", "BraTS-PED-00255"],
    ),
    "brats-ssa": Source(
        modalities=ALL,
        scheme="brats2023",
        cases=_folders("95_Glioma/BraTS-SSA-00228-000 BraTS-SSA-00002-000", GLI, "-"),
        patients=["BraTS-SSA-00002", "BraTS-SSA-00228"],
    ),
    "ucsf-pdgm": Source(
        modalities=ALL,
        scheme="brats",
        cases={
            name: [
                f"{name}_nifti/{name}_{ending}"
                for ending in ("T1", "T1c", "T2", "FLAIR", "tumor_segmentation")
            ]
            for name in ("UCSF-PDGM-0004", "UCSF-PDGM-0431", "UCSF-PDGM-0431_FU001d")
        },
        patients=["UCSF-PDGM-0004", "UCSF-PDGM-0431"],
    ),
    "upenn-gbm": Source(
        modalities=ALL,
        scheme="brats",
        cases={
            name: [
                *(
                    f"images_structural/{name}/{name}_{end}"
                    for end in ("T1", "T1GD", "T2", "FLAIR")
                ),
                mask,
            ]
            for name, mask in {
                "UPENN-GBM-00001_11": "images_segm/UPENN-GBM-00001_11_segm",
                "UPENN-GBM-00001_21": "automated_segm/UPENN-GBM-00001_21_automated_approx_segm",
                "UPENN-GBM-00630_11": "automated_segm/UPENN-GBM-00630_11_automated_approx_segm",
            }.items()
        },
        patients=["UPENN-GBM-00001", "UPENN-GBM-00630"],
    ),
    "lumiere": Source(
        modalities=ALL,
        scheme="lumiere",
        cases={
            f"{patient}_{week}": [
                *(
                    f"{patient}/{week}/DeepBraTumIA-segmentation/atlas/skull_strip/{name}_skull_strip"
                    for name in ("t1", "ct1", "t2", "flair")
                ),
                f"{patient}/{week}/DeepBraTumIA-segmentation/atlas/segmentation/seg_mask",
            ]
            for patient, week in (
                ("Patient-001", "week-000-1"),
                ("Patient-001", "week-000-2"),
                ("Patient-002", "week-044"),
            )
        },
        patients=["Patient-001", "Patient-002"],
    ),
    "mu-glioma-post": Source(
        modalities=ALL,
        scheme="brats2024",
        cases={
            f"{patient}_{time}": [
                *(f"{patient}/{time}/{patient}_{time}_brain_{name}" for name in ALL),
                f"{patient}/{time}/{patient}_{time}_tumorMask",
            ]
            for patient, time in (
                ("PatientID_0003", "Timepoint_1"),
                ("PatientID_0003", "Timepoint_12"),
                ("PatientID_0275", "Timepoint_1"),
            )
        },
        patients=["PatientID_0003", "PatientID_0275"],
    ),
    "fets2022": Source(
        modalities=ALL,
        scheme="brats",
        cases=_folders("FeTS2022_01341 FeTS2022_01333", "t1 t1ce t2 flair seg"),
        patients=["FeTS2022_01333", "FeTS2022_01341"],
    ),
    "msd": Source(
        modalities=ALL,
        scheme="msd",
        cases={
            name: [*[f"imagesTr/{name}"] * 4, f"labelsTr/{name}"]
            for name in ("BRATS_001", "BRATS_484")
        },
        patients=["BRATS_001", "BRATS_484"],
    ),
    "nnunet": Source(
        modalities=ALL,
        scheme="nnunet",
        cases={
            name: [*(f"imagesTr/{name}_000{n}" for n in range(4)), f"labelsTr/{name}"]
            for name in ("BraTS2021_00000", "site_7-b")
        },
        patients=["BraTS2021_00000", "site_7-b"],
    ),
    "bids": Source(
        modalities=ALL,
        scheme="brats",
        cases={
            "sub-01": [
                "sub-01/anat/sub-01_T1w",
                "sub-01/anat/sub-01_ce-gadolinium_T1w",
                "sub-01/anat/sub-01_T2w",
                "sub-01/anat/sub-01_FLAIR",
                "derivatives/manual/sub-01/anat/sub-01_space-T1w_dseg",
            ],
            "sub-02_ses-pre": [
                "sub-02/ses-pre/anat/sub-02_ses-pre_space-SRI_T1w",
                "sub-02/ses-pre/anat/sub-02_ses-pre_ce-gd_space-SRI_T1w",
                "sub-02/ses-pre/anat/sub-02_ses-pre_space-SRI_T2w",
                "sub-02/ses-pre/anat/sub-02_ses-pre_space-SRI_FLAIR",
                "sub-02/ses-pre/anat/sub-02_ses-pre_space-SRI_label-tumour_dseg",
            ],
            "sub-02_ses-post": [
                "sub-02/ses-post/anat/sub-02_ses-post_T1w",
                "sub-02/ses-post/anat/sub-02_ses-post_ce-gd_T1w",
                "sub-02/ses-post/anat/sub-02_ses-post_T2w",
                "sub-02/ses-post/anat/sub-02_ses-post_FLAIR",
                "derivatives/sub-02/ses-post/anat/sub-02_ses-post_label-lesion_mask",
            ],
        },
        patients=["sub-01", "sub-02"],
    ),
    "lgg": Source(
        modalities=("t1n", "t1c", "t2f"),
        scheme="lgg",
        cases=_folders("TCGA_DU_5849 TCGA_HT_A61B TCGA_EZ_7264", "t1 t1ce flair seg"),
        patients=["TCGA_DU_5849", "TCGA_EZ_7264", "TCGA_HT_A61B"],
    ),
}


SISTERS = [name for name in SOURCES if name.startswith("brats-")]
HOSPITALS = ["ucsf-pdgm", "upenn-gbm", "lumiere", "mu-glioma-post"]
NEW = [*SISTERS, *HOSPITALS, "brats2025"]


def write_scan(path: Path, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(head(SHAPE, seed=seed), np.eye(4)), path)


def write_mask(path: Path, *, scheme: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(SHAPE, np.uint8)
    for number, value in enumerate(sorted(scheme_values(scheme) - {0})):
        mask[4 + number, 5:8, 4:6] = value
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), path)


def write_source(root: Path, layout: str, *, scheme: str = "", suffix: str = ".nii.gz") -> None:
    """Small sound images under a source's real names."""
    source = SOURCES[layout]
    for number, files in enumerate(source.cases.values()):
        *images, mask = files
        for place, file in enumerate(images):
            write_scan(root / f"{file}{suffix}", seed=10 * number + place)
        write_mask(root / f"{mask}{suffix}", scheme=scheme or source.scheme)


def of(layout: str, root: Path | tuple[Path, ...], **changes: Any) -> SiteData:
    source = SOURCES[layout]
    values: dict[str, Any] = {
        "root": root,
        "layout": layout,
        "label_scheme": source.scheme,
        "modalities": source.modalities,
    }
    return SiteData(**(values | changes))
