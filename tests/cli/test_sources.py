"""`medfl check --detect`, `medfl sites` and `medfl import` as a researcher runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_a_folder_s_layout_is_proposed(medfl: Any, synthetic_patients: Path) -> None:
    ended = medfl("check", synthetic_patients / "north", "--detect", "--json")
    assert ended.code == 0
    best, *_ = json.loads(ended.out)
    assert (best["layout"], best["label_scheme"], best["surety"]) == (
        "brats2021",
        "brats",
        "certain",
    )
    shown = medfl("check", synthetic_patients / "north.toml", "--detect")
    assert shown.code == 0
    assert "certain" in shown.out


def test_a_folder_that_no_layout_describes_is_an_error(medfl: Any, tmp_path: Path) -> None:
    medfl("check", tmp_path, "--detect").refused(2, tmp_path, "a known layout", "custom")
    medfl("check", tmp_path / "away.toml", "--detect").refused(2, "away.toml")
    (tmp_path / "scan.dcm").touch()
    medfl("check", tmp_path, "--detect").refused(2, "NIfTI", "1 of DICOM", "dcm2niix")


def test_fets_institutions_become_site_files(medfl: Any, tmp_path: Path) -> None:
    partition = tmp_path / "partitioning_1.csv"
    partition.write_bytes(b"Partition_ID,Subject_ID\r\n1,FeTS2022_00001\r\n2,FeTS2022_00002\r\n")
    arguments = ("sites", "from-fets", tmp_path, "--partition", partition, "--at-least", 1)
    ended = medfl(*arguments, "--out", tmp_path / "sites")
    assert ended.code == 0
    assert [Path(line).name for line in ended.out.split()] == ["fets-01.toml", "fets-02.toml"]
    medfl(*arguments, "--out", tmp_path / "sites").refused(2, "new or empty folder")


@pytest.mark.real_data
def test_the_lgg_originals_are_imported(medfl: Any, tmp_path: Path, real_data: Path) -> None:
    source = real_data / "lgg_original" / "kaggle_3m"
    ended = medfl("import", "lgg", source, tmp_path / "out")
    assert ended.code == 0
    assert f"{tmp_path / 'out' / 'CS.toml'}: 1 patients" in ended.out.replace("\n", "")
    checked = medfl("check", tmp_path / "out" / "CS", "--detect", "--json")
    assert json.loads(checked.out)[0]["layout"] == "lgg"


def test_a_wrong_folder_of_originals_is_an_error(medfl: Any, tmp_path: Path) -> None:
    medfl("import", "lgg", tmp_path / "away", tmp_path / "out").refused(2, "kaggle_3m")
