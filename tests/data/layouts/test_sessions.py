"""A patient's folder with sessions below, as a site describes it: one patient, several cases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.config.site import SiteData
from medfl.data.layouts.survey import read_case, read_cohort, survey_cohort
from medfl.errors import ConfigError, DataError

SITE = """
name = "north"
purpose = "hospital"
declared_patients = 2
weight = 2.0
state = "state"

[data]
root = "images"
layout = "custom"
label_scheme = "brats2023"
modalities = ["t1n", "t2f"]

[privacy]
epsilon = 8.0

[data.custom]
"""
SESSIONS = {
    "images": {"t1n": "{patient}/{session}/T1.nii.gz", "t2f": "{patient}/{session}/FLAIR*"},
    "mask": "{patient}/{session}/tumour",
}


def custom(root: Path, *, patient: str = "", **changes: Any) -> SiteData:
    return SiteData(
        root=root,
        layout="custom",
        label_scheme="brats2023",
        modalities=("t1n", "t2f"),
        custom=SESSIONS | changes,
        patient=patient,
    )


def add(root: Path, *cases: str, files: str = "T1 FLAIR_axial tumour") -> None:
    for case in cases:
        for file in files.split():
            path = root / case / f"{file}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def cases_of(data: SiteData) -> dict[str, list[str]]:
    return {
        patient.patient_id: [case.case_id for case in patient.cases]
        for patient in read_cohort(data).patients
    }


def test_all_sessions_of_a_patient_are_one_patient(tmp_path: Path) -> None:
    add(tmp_path, "P1/week1", "P1/week2", "P2/week1")
    assert cases_of(custom(tmp_path)) == {"P1": ["P1_week1", "P1_week2"], "P2": ["P2_week1"]}
    case = read_cohort(custom(tmp_path)).patients[0].cases[1]
    assert case.images["t2f"] == tmp_path / "P1/week2/FLAIR_axial.nii.gz"
    assert case.mask == tmp_path / "P1/week2/tumour.nii.gz"


def test_a_patient_without_sessions_is_one_case(tmp_path: Path) -> None:
    add(tmp_path, "P1", "P2")
    images = {"t1n": "{patient}/T1", "t2f": "{patient}/FLAIR*"}
    data = custom(tmp_path, images=images, mask="{patient}/tumour")
    assert cases_of(data) == {"P1": ["P1"], "P2": ["P2"]}


def test_names_of_folders_may_be_repeated_by_files_or_stand_in_other_trees(tmp_path: Path) -> None:
    for session in ("a", "b"):
        name = f"P1_{session}"
        add(tmp_path, f"mr/P1/{session}", files=f"{name}_T1 {name}_FLAIR")
        add(tmp_path, f"truth/P1/{session}", files=name)
    images = {
        "t1n": "mr/{patient}/{session}/{patient}_{session}_T1",
        "t2f": "mr/{patient}/{session}/{patient}_{session}_FLAIR",
    }
    mask = "truth/{patient}/{session}/{patient}_{session}"
    assert cases_of(custom(tmp_path, images=images, mask=mask)) == {"P1": ["P1_a", "P1_b"]}


def test_a_folder_for_each_modality_is_no_second_case(tmp_path: Path) -> None:
    add(tmp_path, "P1/week1/T1", "P1/week1/FL", "P1/week1/seg", files="scan")
    images = {"t1n": "{patient}/{session}/T1/scan", "t2f": "{patient}/{session}/FL/scan"}
    data = custom(tmp_path, images=images, mask="{patient}/{session}/seg/scan")
    assert cases_of(data) == {"P1": ["P1_week1"]}
    for name in ("T1", "FLAIR", "seg"):
        add(tmp_path / "flat", name, files="case7")
    images = {"t1n": "T1/{case}", "t2f": "FLAIR/{case}"}
    case = r"(?P<patient>case\d+)"
    assert cases_of(custom(tmp_path / "flat", images=images, mask="seg/{case}", case=case)) == {
        "case7": ["case7"]
    }


def test_patterns_say_which_folders_are_people_and_sessions(tmp_path: Path) -> None:
    add(tmp_path, "P1/week1")
    (tmp_path / "archive").mkdir()
    (tmp_path / "P1" / "letters").mkdir()
    problems = {p.patient_id for p in survey_cohort(custom(tmp_path)).problems}
    assert problems == {"archive", "P1"}  # any name may be a person's, or a session's
    ignored = custom(tmp_path, ignored=("archive", "letters"))
    assert cases_of(ignored) == {"P1": ["P1_week1"]}
    strict = SiteData.model_validate(
        ignored.model_dump()
        | {"custom": SESSIONS | {"patient": r"P\d+", "session": r"week\d+"}, "root": tmp_path}
    )
    found = [problem.value for problem in survey_cohort(strict).problems]
    assert found == ["'letters'", "'archive'"]


def test_a_session_without_images_is_a_problem_and_not_nobody(tmp_path: Path) -> None:
    add(tmp_path, "P1/week1")
    (tmp_path / "P1/week2").mkdir()
    (tmp_path / "P2").mkdir()
    wrong = {
        (p.patient_id, p.rule.split(" (")[0]) for p in survey_cohort(custom(tmp_path)).problems
    }
    assert wrong == {
        ("P1", "one t1n image"),
        ("P1", "one t2f image"),
        ("P1", "one mask"),
        ("P2", "a patient's images"),
    }


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    add(tmp_path, "A_b/c", "A/b_c")
    with pytest.raises(DataError, match="found another case called 'A_b_c' too"):
        read_cohort(custom(tmp_path))


def test_a_mask_is_not_another_case_s_for_its_name(tmp_path: Path) -> None:
    add(tmp_path / "mr", "A_b/c", files="T1 FLAIR")
    add(tmp_path / "truth", "A/b_c", files="tumour")
    images = {key: f"mr/{path}" for key, path in SESSIONS["images"].items()}
    data = custom(tmp_path, images=images, mask="truth/{patient}/{session}/tumour")
    rules = [problem.rule for problem in survey_cohort(data).problems]
    assert rules == ["one mask (tumour)", "images beside every mask"]


@pytest.mark.parametrize("names", [("P1", "p1"), ("Straße", "STRASSE")])
def test_patients_who_differ_in_capital_letters_are_refused(
    names: tuple[str, str], tmp_path: Path
) -> None:
    for name in names:
        add(tmp_path, f"{name}/week1")
    with pytest.raises(DataError, match="differ in more than capital letters"):
        read_cohort(custom(tmp_path))


def test_a_pattern_joins_people_and_divides_nobody(tmp_path: Path) -> None:
    add(tmp_path, "P1/week1", "P1/week2", "P1b/week1")
    joined = custom(tmp_path, patient=r"(?P<patient>P\d+)b?_week\d")
    assert cases_of(joined) == {"P1": ["P1_week1", "P1_week2", "P1b_week1"]}
    divided = custom(tmp_path, patient=r"(?P<patient>.+)")
    with pytest.raises(DataError, match="and divides nobody") as error:
        read_cohort(divided)
    assert "found 'P1' as 'P1_week1', 'P1_week2'" in str(error.value)
    for problem in survey_cohort(divided).problems:
        assert "P1" not in problem.rule + problem.fix  # they may leave the site


def test_the_folder_of_one_session_is_read_alone(tmp_path: Path) -> None:
    add(tmp_path, "P1/week1")
    case = read_case(tmp_path / "P1/week1", data=custom(tmp_path))
    assert case.images["t1n"] == tmp_path / "P1/week1/T1.nii.gz"


# The site's file


def loaded(tmp_path: Path, table: str) -> SiteData:
    path = tmp_path / "site.toml"
    path.write_text(SITE + table)
    return load_site(path).data


def paths(t1n: str, t2f: str, mask: str, more: str = "") -> str:
    return f"images = {{ t1n = '{t1n}', t2f = '{t2f}' }}\nmask = '{mask}'\n{more}"


def test_a_suffix_in_a_template_is_no_mistake(tmp_path: Path) -> None:
    table = paths(
        "{patient}/{session}/T1.nii.gz", "{patient}/{session}/F.NII", "{patient}/{session}/s"
    )
    custom_layout = loaded(tmp_path, table).custom
    assert custom_layout is not None
    assert custom_layout.images["t2f"] == "{patient}/{session}/F"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (paths("{session}/T1", "{session}/F", "{session}/s"), "nothing else tells patients apart"),
        (paths("T1", "F", "s"), "nothing else tells patients apart"),
        (paths("{patient}/{case}/T1", "{patient}/F", "{patient}/s"), "nothing else tells"),
        (
            paths("{patient}/{session}/T1", "{patient}/F", "{patient}/s"),
            r"the same of .* found '\{patient\}/\{session\}/T1' beside '\{patient\}/s'",
        ),
        (
            paths("{patient}/{session}/T1", "{patient}/{session}/F", "{patient}/s"),
            r"the same of .* beside '\{patient\}/s'",
        ),
        (paths("{patient}/T1", "{patient}/T1", "{patient}/s"), "'{patient}/T1' more than once"),
        (paths("{patient}/T1", "{patient}/s", "{patient}/s"), "'{patient}/s' more than once"),
        (paths("{case}/T1", "{case}/F", "{case}/s"), r"expected data.custom.case, a pattern"),
        (
            paths("{patient}/T1", "{patient}/F", "{patient}/s", "session = 'w'"),
            r"data.custom.session only where paths have \{session\}, found 'w'",
        ),
        (
            paths("{patient}_{session}_T1", "{patient}_{session}_F", "{patient}_{session}_s"),
            r"expected data.custom.patient, a pattern of the person's name",
        ),
        (paths("{patient}*/T1", "{patient}*/F", "{patient}*/s"), "expected data.custom.patient"),
        (paths("{subject}/T1", "{subject}/F", "{subject}/s"), "expected no braces but"),
        (paths("{patient/T1", "{patient}/F", "{patient}/s"), "expected no braces but"),
        (paths("../{patient}/T1", "{patient}/F", "{patient}/s"), "a path below the root"),
        (paths("/{patient}/T1", "{patient}/F", "{patient}/s"), "a path below the root"),
        (
            paths("{patient}/T1", "{patient}/F", "{patient}/s", "patient = '('"),
            "regular expression",
        ),
        (
            paths("{patient}/T1", "{patient}/F", "{patient}/s", "patient = '(?i)P'"),
            "regular expression",
        ),
        (
            paths("{patient}/T1", "{patient}/F", "{patient}/s", "patient = '(?P<patient>P)'"),
            "of the whole name, without a named group",
        ),
        (paths("{case}/T1", "{case}/F", "{case}/s", "case = 'P'"), r"a group \(\?P<patient>"),
        (
            paths("{case}/T1", "{case}/F", "{case}/s", "case = '(?i)(?P<patient>P)'"),
            "regular expression",
        ),
    ],
)
def test_a_template_that_cannot_tell_patients_apart_is_refused(
    table: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, table)
    assert re.search(expected, str(error.value)), error.value
    assert "key data.custom" in str(error.value)


@pytest.mark.parametrize(
    "table",
    [
        paths("{patient}/{session}/T1", "{patient}/{session}/F", "{patient}/{session}/s"),
        paths("{patient}/T1", "{patient}/F", "{patient}/s"),
        paths("{case}/T1", "{case}/F", "{case}/s", "case = '(?P<patient>P)_.*'"),
    ],
)
def test_a_copy_of_a_table_is_the_same_table(table: str, tmp_path: Path) -> None:
    data = loaded(tmp_path, table).model_copy(update={"root": (Path("/a"), Path("/b"))})
    assert SiteData.model_validate_json(data.model_dump_json()) == data


def test_flat_files_need_the_pattern_of_the_person(tmp_path: Path) -> None:
    add(tmp_path, ".", files="P1_2019_01_T1 P1_2019_01_F P1_2019_01_s")
    flat = {key: f"{{patient}}_{{session}}_{end}" for key, end in (("t1n", "T1"), ("t2f", "F"))}
    data = SiteData(
        root=tmp_path,
        layout="custom",
        label_scheme="brats2023",
        modalities=("t1n", "t2f"),
        custom={"images": flat, "mask": "{patient}_{session}_s", "patient": r"P\d+"},
    )
    assert cases_of(data) == {"P1": ["P1_2019_01"]}
