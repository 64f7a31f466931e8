"""`medfl check --detect` as a person uses it: what it prints is a site file that passes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.config.site import SiteConfig, SiteData
from medfl.data.checks import check_cohort
from medfl.data.label_schemes import scheme_of
from medfl.data.layouts.survey import read_cohort, survey_cohort
from medfl.errors import DataError
from tests.data.layouts.sources import ALL, NEW, SOURCES, write_mask, write_scan, write_source


def write_rubbish(root: Path) -> None:
    """What archives, systems and people leave beside images."""
    for file in sorted(root.rglob("*.nii*")):
        file.with_name(f"._{file.name}").write_bytes(b"\0" * 16)
        file.with_name("notes.txt").touch()
        file.with_name(".DS_Store").touch()
    (root / "clinical.csv").touch()
    (root / "__MACOSX").mkdir()


def site(data: SiteData, tmp_path: Path) -> SiteConfig:
    return SiteConfig(
        name="site",
        purpose="open-data",
        declared_patients=len(survey_cohort(data).patients),
        weight=1.0,
        state=tmp_path / "state",
        data=data,
        privacy={"epsilon": 8.0},
    )


def errors(data: SiteData, tmp_path: Path) -> list[str]:
    found = check_cohort(site(data, tmp_path))
    return [f"{f.name}: {f.rule}, {f.value}" for f in found if f.severity == "error"]


@pytest.mark.parametrize("layout", NEW)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_collection_is_detected_and_its_site_file_passes_the_check(
    layout: str, suffix: str, medfl: Any, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    write_source(root, layout, suffix=suffix)
    write_rubbish(root)
    best = json.loads(medfl("check", root, "--detect", "--json").out)[0]
    assert layout in (best["layout"], *best["alike"])
    source = SOURCES[layout]
    assert scheme_of(best["label_scheme"]) == scheme_of(source.scheme)
    assert best["modalities"] == list(source.modalities)
    assert (best["patients"], best["cases"]) == (len(source.patients), len(source.cases))
    assert best["problems"] == 0
    printed = medfl("check", root, "--detect").out
    file = tmp_path / "site.toml"
    file.write_text(printed)
    found = load_site(file)
    assert found.declared_patients == len(source.patients)
    assert [patient.patient_id for patient in read_cohort(found.data).patients] == source.patients
    assert errors(found.data, tmp_path) == []


def test_parts_of_an_archive_are_proposed_as_several_roots(tmp_path: Path, medfl: Any) -> None:
    root = tmp_path / "archive"
    for number, part in enumerate(("Training_1", "Training_2")):
        case = f"BraTS-MEN-0000{number}-000"
        for place, ending in enumerate(ALL):
            write_scan(root / part / case / f"{case}-{ending}.nii.gz", seed=10 * number + place)
        write_mask(root / part / case / f"{case}-seg.nii.gz", scheme="brats2023")
    file = tmp_path / "site.toml"
    file.write_text(medfl("check", root, "--detect").out)
    data = load_site(file).data
    assert data.roots == (root / "Training_1", root / "Training_2")
    assert errors(data, tmp_path) == []


def test_the_printed_file_says_what_is_doubtful(medfl: Any, tmp_path: Path) -> None:
    write_source(tmp_path, "lumiere")
    text = medfl("check", tmp_path, "--detect").out
    assert "# likely: layout lumiere, label_scheme lumiere" in text
    assert "EDIT: look at some masks" in text
    table = tomllib.loads(text)
    assert table["purpose"] == "hospital"
    assert table["data"]["root"] == str(tmp_path)


def test_examinations_without_a_mask_are_left_out_by_name(medfl: Any, tmp_path: Path) -> None:
    root = tmp_path / "images"
    write_source(root, "upenn-gbm")
    (root / "automated_segm/UPENN-GBM-00001_21_automated_approx_segm.nii.gz").unlink()
    (root / "automated_segm/UPENN-GBM-00630_11_automated_approx_segm.nii.gz").unlink()
    file = tmp_path / "site.toml"
    file.write_text(medfl("check", root, "--detect").out)
    data = load_site(file).data
    assert load_site(file).declared_patients == 1
    assert data.incomplete == "leave-out"
    assert errors(data, tmp_path) == []
    (patient,) = read_cohort(data).patients
    assert [case.case_id for case in patient.cases] == ["UPENN-GBM-00001_11"]
    named = [f for f in check_cohort(site(data, tmp_path)) if "left out" in f.value]
    assert [(f.severity, f.patient) for f in named] == [
        ("warning", "UPENN-GBM-00001"),
        ("warning", "UPENN-GBM-00630"),
    ]
    with pytest.raises(DataError, match="expected one mask"):
        read_cohort(data.model_copy(update={"incomplete": "refuse"}))


def test_a_folder_is_labelled_as_its_source_unless_that_is_in_doubt(
    medfl: Any, tmp_path: Path
) -> None:
    write_source(tmp_path, "brats-men")
    ended = medfl("evaluate", tmp_path, tmp_path, "--layout", "brats-men")
    assert ended.code == 0  # against itself
    assert "1.000" in ended.out
    medfl("evaluate", tmp_path, tmp_path, "--layout", "brats-ped").refused(
        2, "--label-scheme", "brats-ped", "brats2023"
    )


def test_cases_that_nobody_can_read_whole_give_no_site_file(medfl: Any, tmp_path: Path) -> None:
    """A file for no patient would look like an answer."""
    for person in ("Patient-001", "Patient-002"):
        for name in ("T1", "T1c", "FLAIR"):  # a name that no known layout has among them
            write_scan(tmp_path / person / "week-000-1" / f"{name}.nii.gz", seed=1)
        write_mask(tmp_path / person / "week-000-1" / "seg.nii.gz", scheme="brats2023")
    ended = medfl("check", tmp_path, "--detect")
    ended.refused(2, "layout = 'custom'", "{patient}/{session}/T1")
    assert "name =" not in ended.out


def test_every_line_fits_a_terminal_and_is_a_comment(medfl: Any, tmp_path: Path) -> None:
    write_source(tmp_path / "images", "ucsf-pdgm")
    ended = medfl("check", tmp_path / "images", "--detect")
    said = ended.out[: ended.out.index("# One hospital's own file")].splitlines()[1:]
    assert said
    assert all(line.startswith("# ") and len(line) <= 80 for line in said)
