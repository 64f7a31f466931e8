"""Folders to patients: every layout, and every way in which folders can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.config.site import SiteConfig, SiteData
from medfl.data.checks import check_cohort
from medfl.data.layouts.rules import LAYOUTS
from medfl.data.layouts.survey import read_case, read_cohort, survey_cohort
from medfl.errors import DataError
from tests.data.layouts.sources import BRATS, SOURCES


def site_data(root: Path, layout: str = "brats2021", **changes: object) -> SiteData:
    source = SOURCES[layout]
    values = {
        "root": root,
        "layout": layout,
        "label_scheme": source.scheme,
        "modalities": source.modalities,
    }
    return SiteData(**(values | changes))


def add_case(root: Path, folder: str, layout: str, *, suffix: str = ".nii.gz") -> Path:
    """A case folder whose files are empty: a layout looks at names only."""
    path = root / folder
    path.mkdir(parents=True)
    endings = {"lgg": "t1 t1ce flair seg"}.get(layout, BRATS)
    for ending in endings.split():
        (path / f"{path.name}_{ending}{suffix}").touch()
    return path


def add_source(root: Path, layout: str, *, suffix: str = ".nii.gz") -> None:
    for files in SOURCES[layout].cases.values():
        for file in files:
            add_file(root / f"{file}{suffix}")


def add_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_every_layout_is_tried() -> None:
    assert set(SOURCES) == set(LAYOUTS)


@pytest.mark.parametrize("layout", SOURCES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".NII.GZ"])
def test_each_layout_finds_its_patients(tmp_path: Path, layout: str, suffix: str) -> None:
    source = SOURCES[layout]
    add_source(tmp_path, layout, suffix=suffix)
    (tmp_path / "name_mapping.csv").touch()
    cohort = read_cohort(site_data(tmp_path, layout))
    assert [patient.patient_id for patient in cohort.patients] == source.patients
    assert cohort.label_scheme == source.scheme
    found = {case.case_id: case for patient in cohort.patients for case in patient.cases}
    assert set(found) == set(source.cases)
    for name, files in source.cases.items():
        case = found[name]
        paths = [*(case.images[modality] for modality in source.modalities), case.mask]
        assert paths == [tmp_path / f"{file}{suffix}" for file in files]


def test_a_4d_file_holds_all_modalities(tmp_path: Path) -> None:
    add_source(tmp_path, "msd")
    data = site_data(tmp_path, "msd", modalities=("t1c", "t2f"))
    case = read_cohort(data).patients[0].cases[0]
    # The dataset's own dataset.json: 0 FLAIR, 1 T1w, 2 t1gd, 3 T2w.
    assert case.channels == {"t1c": 2, "t2f": 0}
    assert case.volumes == 4


def test_a_custom_layout_is_written_in_the_site_file(tmp_path: Path) -> None:
    for name in ("P07_first", "P07_second", "P12_first"):
        for file in (f"scans/{name}/T1", f"scans/{name}/FL_x", f"truth/{name}-tumour"):
            path = tmp_path / f"{file}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "notes").mkdir()
    data = SiteData(
        root=tmp_path,
        layout="custom",
        label_scheme="brats2023",
        modalities=("t1n", "t2f"),
        custom={
            "case": r"(?P<patient>P\d+)_[a-z]+",
            "images": {"t1n": "scans/{case}/T1", "t2f": "scans/{case}/FL_*"},
            "mask": "truth/{case}-tumour",
            "ignored": ("notes",),
        },
    )
    cohort = read_cohort(data)
    assert {p.patient_id: len(p.cases) for p in cohort.patients} == {"P07": 2, "P12": 1}
    (tmp_path / "truth" / "P12_first-tumour.nii.gz").unlink()
    with pytest.raises(DataError, match=r"expected one mask \(\*-tumour\), found none"):
        read_cohort(data)


def test_the_site_file_says_which_part_of_a_case_is_the_person(tmp_path: Path) -> None:
    add_source(tmp_path, "nnunet")
    for name in ("patient3_t0", "patient3_t1"):
        for file in (*(f"imagesTr/{name}_000{n}" for n in range(4)), f"labelsTr/{name}"):
            (tmp_path / f"{file}.nii.gz").touch()
    pattern = r"(?P<patient>patient\d+)_t\d+"
    survey = survey_cohort(site_data(tmp_path, "nnunet", patient=pattern))
    assert {"patient3": 2}.items() <= {p.patient_id: len(p.cases) for p in survey.patients}.items()
    # The others have no such name, and guessing would split or join people.
    assert [problem.patient_id for problem in survey.problems] == ["BraTS2021_00000", "site_7-b"]
    assert all("data.patient" in problem.rule for problem in survey.problems)


def test_a_mask_without_images_is_a_problem(tmp_path: Path) -> None:
    add_source(tmp_path, "msd")
    (tmp_path / "labelsTr" / "BRATS_999.nii.gz").touch()
    assert "expected images beside every mask, found none" in refused(site_data(tmp_path, "msd"))


def test_a_stranger_among_flat_files_is_named(tmp_path: Path) -> None:
    add_source(tmp_path, "nnunet")
    (tmp_path / "imagesTr" / "another.nii.gz").touch()
    assert "found 'another.nii.gz'" in refused(site_data(tmp_path, "nnunet"))


def test_a_missing_modality_of_a_flat_layout_names_the_case(tmp_path: Path) -> None:
    add_source(tmp_path, "nnunet")
    (tmp_path / "imagesTr" / "site_7-b_0001.nii.gz").unlink()
    assert refused(site_data(tmp_path, "nnunet")).startswith(
        f"{tmp_path}/imagesTr/site_7-b: expected one t1c image (*_0001), found none."
    )


def test_a_bids_subject_without_images_is_a_problem(tmp_path: Path) -> None:
    add_source(tmp_path, "bids")
    (tmp_path / "sub-03" / "ses-a").mkdir(parents=True)
    (tmp_path / "sub-04" / "anat").mkdir(parents=True)
    survey = survey_cohort(site_data(tmp_path, "bids"))
    assert {problem.patient_id for problem in survey.problems} == {"sub-03", "sub-04"}
    assert sum("a patient's images" in problem.rule for problem in survey.problems) == 1


def test_a_mask_of_another_session_is_not_taken(tmp_path: Path) -> None:
    add_source(tmp_path, "bids")
    (
        tmp_path / "derivatives/sub-02/ses-post/anat/sub-02_ses-post_label-lesion_mask.nii.gz"
    ).unlink()
    assert "sub-02/ses-post/anat: expected one mask" in refused(site_data(tmp_path, "bids"))


BRAIN_MASKS = [
    "derivatives/hdbet/sub-01/anat/sub-01_space-T1w_desc-brain_mask",
    "derivatives/fmriprep/sub-01/anat/sub-01_label-brain_mask",
    "derivatives/freesurfer/sub-01/anat/sub-01_desc-aseg_dseg",
    "sub-01/anat/sub-01_label-GM_mask",
]


@pytest.mark.parametrize("name", BRAIN_MASKS)
def test_a_mask_of_the_brain_is_no_second_tumour(name: str, tmp_path: Path) -> None:
    add_source(tmp_path, "bids")
    add_file(tmp_path / f"{name}.nii.gz")
    cohort = read_cohort(site_data(tmp_path, "bids"))
    mask = cohort.patients[0].cases[0].mask
    assert mask is not None
    assert mask.name == "sub-01_space-T1w_dseg.nii.gz"


@pytest.mark.parametrize("name", BRAIN_MASKS)
def test_a_mask_of_the_brain_alone_is_no_tumour(name: str, tmp_path: Path) -> None:
    add_source(tmp_path, "bids")
    (tmp_path / "derivatives/manual/sub-01/anat/sub-01_space-T1w_dseg.nii.gz").unlink()
    add_file(tmp_path / f"{name}.nii.gz")
    assert "sub-01/anat: expected one mask" in refused(site_data(tmp_path, "bids"))


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
        f"{folder}: expected one t1c image (*_t1ce), found none. Add the file, or remove the case."
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


@pytest.mark.parametrize("layout", SOURCES)
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
    ],
)
def test_settings_that_a_layout_cannot_meet_are_refused(
    tmp_path: Path, layout: str, changes: dict[str, object], rule: str
) -> None:
    add_source(tmp_path, layout)
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
    case = read_case(folder, data=site_data(tmp_path, modalities=("t1c", "t2f")))
    assert case.mask is None
    assert tuple(case.images) == ("t1c", "t2f")


def test_a_case_to_segment_is_checked_like_a_cohort(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder, found nothing"):
        read_case(tmp_path / "away", data=site_data(tmp_path, modalities=("t2f",)))
    folder = add_case(tmp_path, "BraTS2021_00000", "brats2021")
    (folder / "BraTS2021_00000_flair.nii.gz").unlink()
    with pytest.raises(DataError, match="one t2f image"):
        read_case(folder, data=site_data(tmp_path, modalities=("t2f",)))
    with pytest.raises(DataError, match="modalities out of"):
        read_case(folder, data=site_data(tmp_path, "lgg", modalities=("t2w",)))
    with pytest.raises(DataError, match="a layout with one folder a case"):
        read_case(folder, data=site_data(tmp_path, "msd"))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("site", "patients"), [("DU", 36), ("HT", 28), ("CS", 13), ("FG", 12), ("EZ", 1)]
)
def test_real_hospitals_are_read(real_data: Path, site: str, patients: int) -> None:
    assert len(read_cohort(site_data(real_data / "lgg" / site, "lgg")).patients) == patients


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_sample_of_2015_is_read(real_data: Path) -> None:
    data = site_data(real_data / "brats2015", "brats2015")
    patients = read_cohort(data).patients
    assert all(patient.patient_id.startswith("brats_2013_pat") for patient in patients)
    assert len(patients) >= 4
    site = SiteConfig(
        name="sample",
        purpose="open-data",
        declared_patients=len(patients),
        weight=1.0,
        state=Path("unused"),
        data=data,
        privacy={"epsilon": 8.0},
    )
    assert [f for f in check_cohort(site) if f.severity == "error"] == []
