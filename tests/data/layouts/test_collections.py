"""Public collections with their real names: who is a patient, and what counts as their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.data.label_schemes import require_regions, scheme_values
from medfl.data.labels import labels_from_regions, regions_of
from medfl.data.layouts.detection import detect
from medfl.data.layouts.people import person_of
from medfl.data.layouts.survey import read_case, read_cohort, survey_cohort
from medfl.errors import DataError
from tests.data.layouts.sources import NEW, SOURCES, of, write_mask, write_scan, write_source


@pytest.mark.parametrize(
    ("layout", "scheme", "surety"),
    [
        ("brats-men", "brats2023", "certain"),
        ("brats-men-rt", "brats-men-rt", "certain"),
        ("brats-met", "brats2024", "certain"),
        ("brats-met", "brats2023", "likely"),  # 2025 without a cavity looks the same
        ("brats-ped", "brats-ped", "certain"),
        ("brats-ped", "brats2023", "likely"),  # 2023, or 2024 without edema
        ("brats-ssa", "brats2023", "certain"),
        ("brats-ssa", "brats", "a guess"),
        ("ucsf-pdgm", "brats", "certain"),
        ("upenn-gbm", "brats", "certain"),
        ("lumiere", "lumiere", "likely"),  # what its values mean is told differently
        ("mu-glioma-post", "brats2024", "likely"),
        ("brats2024", "brats", "likely"),  # 1, 2, 4: a cavity, or masks converted to older values
        ("brats2021", "lgg", "likely"),  # all of the tumour as 1
    ],
)
def test_a_proposal_is_certain_only_of_what_was_read(
    layout: str, scheme: str, surety: str, tmp_path: Path
) -> None:
    write_source(tmp_path, layout, scheme=scheme)
    best = detect(tmp_path)[0]
    assert best.layout == layout
    assert best.surety == surety


@pytest.mark.parametrize("above", ["Imaging", "PKG/Imaging"])
def test_cases_are_looked_for_below_the_given_folder(above: str, tmp_path: Path) -> None:
    write_source(tmp_path / above, "lumiere")
    best = detect(tmp_path)[0]
    assert (best.layout, best.roots) == ("lumiere", (str(tmp_path / above),))


def test_nobody_is_left_out_in_silence_until_nobody_is_left(tmp_path: Path) -> None:
    write_source(tmp_path, "brats-men")
    for mask in tmp_path.rglob("*-seg.nii.gz"):
        mask.unlink()
    data = of("brats-men", tmp_path, incomplete="leave-out")
    with pytest.raises(DataError, match="expected one mask"):
        read_cohort(data)


@pytest.mark.parametrize("layout", NEW)
def test_a_missing_modality_is_named(layout: str, tmp_path: Path) -> None:
    write_source(tmp_path, layout)
    source = SOURCES[layout]
    name, files = next(iter(source.cases.items()))
    (tmp_path / f"{files[0]}.nii.gz").unlink()
    modality = source.modalities[0]
    problems = survey_cohort(of(layout, tmp_path)).problems
    assert [p.rule.split(" (")[0] for p in problems] == [f"one {modality} image"]
    assert problems[0].value == "none"
    assert name.startswith(problems[0].patient_id)


def test_a_stranger_among_the_cases_of_a_task_is_named(tmp_path: Path) -> None:
    write_source(tmp_path, "brats-men")
    write_source(tmp_path, "brats-ped")
    with pytest.raises(DataError, match=r"found 'BraTS-PED-00002-000'"):
        read_cohort(of("brats-men", tmp_path))
    assert {proposal.surety for proposal in detect(tmp_path)} == {"a guess"}


@pytest.mark.parametrize(
    ("scheme", "regions"),
    [
        ("brats-ped", {"ET": (1,), "TC": (1, 2, 3), "WT": (1, 2, 3, 4)}),
        ("lumiere", {"ET": (2,), "TC": (1, 2), "WT": (1, 2, 3)}),
        ("brats-men-rt", {"TC": (1,)}),
    ],
)
def test_the_regions_of_a_scheme_are_those_of_its_source(
    scheme: Any, regions: dict[Any, tuple[int, ...]]
) -> None:
    label = np.arange(max(scheme_values(scheme)) + 1).reshape(-1, 1, 1)
    found = regions_of(label, scheme=scheme, regions=tuple(regions))
    for channel, values in zip(found, regions.values(), strict=True):
        assert tuple(np.flatnonzero(channel)) == values
    written = labels_from_regions(found, scheme=scheme, regions=tuple(regions))
    assert np.array_equal(regions_of(written, scheme=scheme, regions=tuple(regions)), found)


def test_a_study_of_regions_that_a_task_does_not_draw_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"'brats-men-rt': expected .*\['TC'\], found \['WT', 'ET'\]"
    ):
        require_regions(["TC", "WT", "ET"], scheme="brats-men-rt")


# Who is who


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("brats-gli-00005-101", "brats-gli-00005"),
        ("BraTS-MEN-RT-0402-2", "BraTS-MEN-RT-0402"),
        ("Brats18_TCIA08_469_1", "Brats18_TCIA08_469"),
        ("UCSF-PDGM-0431_FU001d", "UCSF-PDGM-0431"),
        ("UCSF-PDGM-0278", "UCSF-PDGM-0431"),
        ("UPENN-GBM-00001_21", "UPENN-GBM-00001"),
        ("Patient-001_week-000-1", "Patient-001"),
        ("PatientID_0003_Timepoint_2", "PatientID_0003"),
        ("sub-02_ses-post", "sub-02"),
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("P07_first", "P07_first"),
    ],
)
def test_a_known_name_is_read_as_its_person(name: str, person: str) -> None:
    assert person_of(name) == person


def test_converted_timepoints_stay_one_patient(tmp_path: Path) -> None:
    for case in ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "case_7"):
        for number in range(4):
            write_scan(tmp_path / "imagesTr" / f"{case}_000{number}.nii.gz", seed=number)
        write_mask(tmp_path / "labelsTr" / f"{case}.nii.gz", scheme="nnunet")
    cohort = read_cohort(of("nnunet", tmp_path))
    assert {p.patient_id: len(p.cases) for p in cohort.patients} == {
        "BraTS-GLI-00005": 2,
        "case_7": 1,
    }
    write_scan(tmp_path / "imagesTs" / "BraTS-GLI-00005-102_0000.nii.gz", seed=5)
    with pytest.raises(DataError, match="found BraTS-GLI-00005 in both"):
        read_cohort(of("nnunet", tmp_path))


def test_a_followup_under_a_number_of_its_own_is_no_second_patient(tmp_path: Path) -> None:
    write_source(tmp_path, "ucsf-pdgm")
    old = tmp_path / "UCSF-PDGM-0431_FU001d_nifti"
    for file in list(old.iterdir()):
        file.rename(file.with_name(file.name.replace("0431_FU001d", "0278")))
    old.rename(tmp_path / "UCSF-PDGM-0278_nifti")
    patients = read_cohort(of("ucsf-pdgm", tmp_path)).patients
    assert {p.patient_id: [case.case_id for case in p.cases] for p in patients} == {
        "UCSF-PDGM-0004": ["UCSF-PDGM-0004"],
        "UCSF-PDGM-0431": ["UCSF-PDGM-0278", "UCSF-PDGM-0431"],
    }


def test_the_files_of_a_followup_need_not_repeat_it(tmp_path: Path) -> None:
    write_source(tmp_path, "ucsf-pdgm")
    folder = tmp_path / "UCSF-PDGM-0431_FU001d_nifti"
    for file in list(folder.iterdir()):
        file.rename(file.with_name(file.name.replace("_FU001d", "")))
    followup = read_cohort(of("ucsf-pdgm", tmp_path)).patients[1].cases[1]
    assert followup.images["t1c"] == folder / "UCSF-PDGM-0431_T1c.nii.gz"


# Several versions of one image


def test_the_plain_image_counts_and_the_corrected_one_where_it_is_missing(tmp_path: Path) -> None:
    write_source(tmp_path, "ucsf-pdgm")
    first, second = (tmp_path / f"{name}_nifti" for name in ("UCSF-PDGM-0004", "UCSF-PDGM-0431"))
    for folder in (first, second):
        for file in list(folder.glob("*_[TF]*.nii.gz")):
            write_scan(file.with_name(file.name.replace(".nii", "_bias.nii")), seed=hash(file) % 99)
            if folder == second:
                file.unlink()
    one, other = (p.cases[0] for p in read_cohort(of("ucsf-pdgm", tmp_path)).patients)
    assert one.images["t2f"].name == "UCSF-PDGM-0004_FLAIR.nii.gz"
    assert other.images["t2f"].name == "UCSF-PDGM-0431_FLAIR_bias.nii.gz"
    assert "UCSF-PDGM-0004_FLAIR_bias.nii.gz" in [path.name for path in one.others]


def test_a_mask_drawn_by_hand_comes_before_a_machines(tmp_path: Path) -> None:
    write_source(tmp_path, "upenn-gbm")
    both = tmp_path / "automated_segm/UPENN-GBM-00001_11_automated_approx_segm.nii.gz"
    write_mask(both, scheme="brats")
    case = read_cohort(of("upenn-gbm", tmp_path)).patients[0].cases[0]
    assert case.mask == tmp_path / "images_segm/UPENN-GBM-00001_11_segm.nii.gz"


def test_other_images_of_upenn_are_nobodys_business(tmp_path: Path) -> None:
    write_source(tmp_path, "upenn-gbm")
    name = "UPENN-GBM-00001_11"
    for folder, ending in (
        ("images_structural_unstripped", "T1_unstripped"),
        ("images_DTI/images_DTI", "DTI_FA"),
        ("images_DSC", "DSC_PH"),
    ):
        write_scan(tmp_path / folder / name / f"{name}_{ending}.nii.gz", seed=1)
    assert survey_cohort(of("upenn-gbm", tmp_path)).problems == ()
    assert detect(tmp_path)[0].surety == "certain"


def test_lumiere_is_read_on_one_grid_where_there_is_one(tmp_path: Path) -> None:
    write_source(tmp_path, "lumiere")
    week = tmp_path / "Patient-001/week-000-1"
    for place, name in enumerate(("T1", "CT1", "T2", "FLAIR")):
        write_scan(week / f"{name}.nii.gz", seed=70 + place)
        write_scan(
            week / f"HD-GLIO-AUTO-segmentation/registered/{name}_r2s_bet_reg.nii.gz",
            seed=80 + place,
        )
    write_mask(
        week / "HD-GLIO-AUTO-segmentation/registered/segmentation.nii.gz", scheme="brats-men-rt"
    )
    native = week / "DeepBraTumIA-segmentation/native/segmentation/ct1_seg_mask.nii.gz"
    write_mask(native, scheme="lumiere")
    case = read_cohort(of("lumiere", tmp_path)).patients[0].cases[0]
    atlas = week / "DeepBraTumIA-segmentation/atlas"
    assert case.images["t1c"] == atlas / "skull_strip/ct1_skull_strip.nii.gz"
    assert case.mask == atlas / "segmentation/seg_mask.nii.gz"
    assert week / "CT1.nii.gz" in case.others
    assert detect(tmp_path)[0].layout == "lumiere"


def test_further_folders_of_a_case_are_nobodys_business(tmp_path: Path) -> None:
    write_source(tmp_path, "lumiere")
    week = tmp_path / "Patient-001/week-000-1"
    for name in ("reports", "DeepBraTumIA-segmentation/logs"):
        (week / name).mkdir()
    assert survey_cohort(of("lumiere", tmp_path)).problems == ()
    (tmp_path / "Patient-001" / "reports").mkdir()  # an examination that the layout cannot read?
    with pytest.raises(DataError, match="found 'reports'"):
        read_cohort(of("lumiere", tmp_path))


@pytest.mark.parametrize(
    "mask",
    [
        "DeepBraTumIA-segmentation/atlas/segmentation/seg_mask",
        "DeepBraTumIA-segmentation/native/segmentation/ct1_seg_mask",
    ],
)
def test_lumiere_as_it_was_scanned_is_read_too(mask: str, tmp_path: Path) -> None:
    for week in ("week-000-1", "week-044"):
        folder = tmp_path / "Patient-001" / week
        for place, name in enumerate(("T1", "CT1", "T2", "FLAIR")):
            write_scan(folder / f"{name}.nii.gz", seed=70 + place)
        write_mask(folder / f"{mask}.nii.gz", scheme="lumiere")
    best = detect(tmp_path)[0]
    assert (best.layout, best.patients, best.cases, best.problems) == ("lumiere", 1, 2, 0)
    (patient,) = read_cohort(of("lumiere", tmp_path)).patients
    assert patient.cases[1].images["t1c"] == tmp_path / "Patient-001/week-044/CT1.nii.gz"


# One case


@pytest.mark.parametrize("layout", ["brats-men-rt", "ucsf-pdgm", "upenn-gbm", "mu-glioma-post"])
def test_the_folder_of_one_case_is_read_alone(layout: str, tmp_path: Path) -> None:
    write_source(tmp_path, layout)
    files = next(iter(SOURCES[layout].cases.values()))
    folder = (tmp_path / files[0]).parent
    case = read_case(folder, data=of(layout, tmp_path))
    assert [*case.images.values()] == [tmp_path / f"{file}.nii.gz" for file in files[:-1]]
