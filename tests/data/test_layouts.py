"""Folders to patients: every layout, and every way in which folders can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.config.site import SiteData
from medfl.data.layout_rules import LAYOUTS
from medfl.data.layouts import read_case, read_cohort, survey_cohort
from medfl.errors import DataError

MODALITIES = {
    "brats2018": ("t1n", "t1c", "t2w", "t2f"),
    "brats2019": ("t1n", "t1c", "t2w", "t2f"),
    "brats2020": ("t1n", "t1c", "t2w", "t2f"),
    "brats2021": ("t1n", "t1c", "t2w", "t2f"),
    "lgg": ("t1n", "t1c", "t2f"),
}
CASE_FOLDERS = {
    "brats2018": ["HGG/Brats18_TCIA08_469_1", "LGG/Brats18_2013_0_1", "HGG/Brats18_CBICA_AAB_1"],
    "brats2019": ["HGG/BraTS19_CBICA_AAB_1", "LGG/BraTS19_TMC_06290_1", "HGG/BraTS19_2013_2_1"],
    "brats2020": ["BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_369"],
    "brats2021": ["BraTS2021_00000", "BraTS2021_00002", "BraTS2021_01666"],
    "lgg": ["TCGA_DU_5849", "TCGA_HT_A61B", "TCGA_EZ_7264"],
}
PATIENTS = {
    "brats2018": ["Brats18_2013_0", "Brats18_CBICA_AAB", "Brats18_TCIA08_469"],
    "brats2019": ["BraTS19_2013_2", "BraTS19_CBICA_AAB", "BraTS19_TMC_06290"],
    "brats2020": ["BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_369"],
    "brats2021": ["BraTS2021_00000", "BraTS2021_00002", "BraTS2021_01666"],
    "lgg": ["TCGA_DU_5849", "TCGA_EZ_7264", "TCGA_HT_A61B"],
}


def site_data(root: Path, layout: str = "brats2021", **changes: object) -> SiteData:
    values = {
        "root": root,
        "layout": layout,
        "label_scheme": "lgg" if layout == "lgg" else "brats",
        "modalities": MODALITIES[layout],
    }
    return SiteData(**(values | changes))


def add_case(root: Path, folder: str, layout: str, *, suffix: str = ".nii.gz") -> Path:
    """A case folder whose files are empty: a layout looks at names only."""
    path = root / folder
    path.mkdir(parents=True)
    for ending in (*LAYOUTS[layout].modalities.values(), "seg"):
        (path / f"{path.name}_{ending}{suffix}").touch()
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".NII.GZ"])
def test_each_layout_finds_its_patients(tmp_path: Path, layout: str, suffix: str) -> None:
    for folder in CASE_FOLDERS[layout]:
        add_case(tmp_path, folder, layout, suffix=suffix)
    (tmp_path / "name_mapping.csv").touch()
    cohort = read_cohort(site_data(tmp_path, layout))
    assert [patient.patient_id for patient in cohort.patients] == PATIENTS[layout]
    assert cohort.label_scheme == ("lgg" if layout == "lgg" else "brats")
    (case,) = cohort.patients[0].cases
    assert tuple(case.images) == MODALITIES[layout]
    for modality, path in case.images.items():
        assert path.name == f"{case.case_id}_{LAYOUTS[layout].modalities[modality]}{suffix}"
    assert case.mask is not None
    assert case.mask.name == f"{case.case_id}_seg{suffix}"


def test_timepoints_are_cases_of_one_patient(tmp_path: Path) -> None:
    for folder in ("HGG/Brats18_TCIA08_469_1", "HGG/Brats18_TCIA08_469_2", "LGG/Brats18_2013_9_1"):
        add_case(tmp_path, folder, "brats2018")
    cohort = read_cohort(site_data(tmp_path, "brats2018"))
    assert [len(patient.cases) for patient in cohort.patients] == [1, 2]


def test_the_oddly_named_mask_of_brats_2020_is_found(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS20_Training_355", "brats2020", suffix=".nii")
    odd = folder / "W39_1998.09.19_Segm.nii"
    (folder / "BraTS20_Training_355_seg.nii").rename(odd)
    (patient,) = read_cohort(site_data(tmp_path, "brats2020")).patients
    assert patient.cases[0].mask == odd
    (folder / f"._{odd.name}").touch()
    assert read_cohort(site_data(tmp_path, "brats2020")).patients == (patient,)


def test_an_odd_mask_beside_the_usual_one_is_doubled(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS20_Training_355", "brats2020", suffix=".nii")
    (folder / "W39_1998.09.19_Segm.nii").touch()
    with pytest.raises(DataError, match="one mask"):
        read_cohort(site_data(tmp_path, "brats2020"))


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "._BraTS2021_00000_t1.nii.gz").touch()
    (folder / "BraTS2021_00000_t1.json").touch()
    (tmp_path / ".Trashes").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    assert len(read_cohort(site_data(tmp_path)).patients) == 1


def test_upper_case_endings_are_read(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "BraTS2021_00000_flair.nii.gz").rename(folder / "BraTS2021_00000_FLAIR.nii.gz")
    (patient,) = read_cohort(site_data(tmp_path)).patients
    assert patient.cases[0].images["t2f"].name == "BraTS2021_00000_FLAIR.nii.gz"


def test_only_the_site_s_modalities_are_required(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "BraTS2021_00000_t2.nii.gz").unlink()
    cohort = read_cohort(site_data(tmp_path, modalities=("t1c", "t2f")))
    assert tuple(cohort.patients[0].cases[0].images) == ("t1c", "t2f")


def refused(data: SiteData) -> str:
    with pytest.raises(DataError) as error:
        read_cohort(data)
    assert error.value.code == "data"
    return str(error.value)


def test_a_missing_modality_is_named_with_folder_rule_value_and_fix(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "BraTS2021_00000_t1ce.nii.gz").unlink()
    assert refused(site_data(tmp_path)) == (
        f"{folder}: expected one t1c image (*_t1ce), found none. "
        "Add the file, or remove the case folder."
    )


def test_both_suffixes_for_one_image_are_doubled(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "BraTS2021_00000_t2.nii").touch()
    text = refused(site_data(tmp_path))
    assert "BraTS2021_00000_t2.nii, BraTS2021_00000_t2.nii.gz" in text
    assert "Keep one" in text


def test_a_missing_mask_is_refused(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "BraTS2021_00000_seg.nii.gz").unlink()
    assert "expected one mask (*_seg), found none" in refused(site_data(tmp_path))


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    assert "expected a folder, found nothing" in refused(site_data(tmp_path / "away"))
    (tmp_path / "file").touch()
    assert "expected a folder, found a file" in refused(site_data(tmp_path / "file"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_root_without_patients_is_refused(tmp_path: Path, layout: str) -> None:
    assert "found none" in refused(site_data(tmp_path, layout))


def test_years_are_not_mixed(tmp_path: Path) -> None:
    add_case(tmp_path, "BraTS2021_00000", "brats2021")
    add_case(tmp_path, "BraTS20_Training_001", "brats2020")
    assert "found 'BraTS20_Training_001'" in refused(site_data(tmp_path))


def test_a_grade_folder_too_deep_or_too_shallow_is_noticed(tmp_path: Path) -> None:
    add_case(tmp_path, "Brats18_TCIA08_469_1", "brats2018")
    assert "one of ['HGG', 'LGG']" in refused(site_data(tmp_path, "brats2018"))


def test_one_case_in_both_grades_is_doubled(tmp_path: Path) -> None:
    add_case(tmp_path, "HGG/Brats18_TCIA08_469_1", "brats2018")
    add_case(tmp_path, "LGG/Brats18_TCIA08_469_1", "brats2018")
    assert "expected each case in one folder" in refused(site_data(tmp_path, "brats2018"))


@pytest.mark.parametrize(
    ("layout", "changes", "rule"),
    [
        ("lgg", {"modalities": ("t1n", "t2w")}, "found ['t2w']"),
        ("lgg", {"label_scheme": "brats"}, "label_scheme out of ['lgg'], found 'brats'"),
        ("brats2021", {"label_scheme": "lgg"}, "label_scheme out of ['brats'], found 'lgg'"),
    ],
)
def test_settings_that_a_layout_cannot_meet_are_refused(
    tmp_path: Path, layout: str, changes: dict[str, object], rule: str
) -> None:
    add_case(tmp_path, CASE_FOLDERS[layout][0], layout)
    assert rule in refused(site_data(tmp_path, layout, **changes))


def test_all_problems_are_surveyed_and_the_first_one_says_how_many(tmp_path: Path) -> None:
    first = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    second = add_case(tmp_path, "BraTS2021_00001", "brats2021")
    (first / "BraTS2021_00000_t1.nii.gz").unlink()
    (first / "BraTS2021_00000_seg.nii.gz").unlink()
    (second / "BraTS2021_00001_flair.nii.gz").unlink()
    survey = survey_cohort(site_data(tmp_path))
    assert [problem.patient_id for problem in survey.problems] == [
        "BraTS2021_00000",
        "BraTS2021_00000",
        "BraTS2021_00001",
    ]
    assert "(2 more" in refused(site_data(tmp_path))


def test_an_unreadable_folder_is_a_problem_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    listing = Path.iterdir

    def iterdir(path: Path) -> object:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert "found Permission denied" in refused(site_data(tmp_path))


def test_a_case_to_segment_needs_no_mask(tmp_path: Path) -> None:
    folder = add_case(tmp_path, "any name", "brats2021")
    (folder / "any name_seg.nii.gz").unlink()
    case = read_case(folder, layout="brats2021", modalities=("t1c", "t2f"), label_scheme="brats")
    assert case.mask is None
    assert tuple(case.images) == ("t1c", "t2f")


def test_a_case_to_segment_is_checked_like_a_cohort(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder, found nothing"):
        read_case(tmp_path / "away", layout="brats2021", modalities=("t2f",), label_scheme="brats")
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "BraTS2021_00000_flair.nii.gz").unlink()
    with pytest.raises(DataError, match="one t2f image"):
        read_case(folder, layout="brats2021", modalities=("t2f",), label_scheme="brats")
    with pytest.raises(DataError, match="modalities out of"):
        read_case(folder, layout="lgg", modalities=("t2w",), label_scheme="lgg")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("site", "patients"), [("DU", 36), ("HT", 28), ("CS", 13), ("FG", 12), ("EZ", 1)]
)
def test_real_hospitals_are_read(real_data: Path, site: str, patients: int) -> None:
    assert len(read_cohort(site_data(real_data / "lgg" / site, "lgg")).patients) == patients
