"""From a partition file of FeTS to site files that load."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.config import load_site
from medfl.data.layouts.fets import read_partition, write_fets_sites
from medfl.data.layouts.survey import read_cohort, survey_cohort
from medfl.errors import DataError

# As the challenge publishes it: carriage returns, institutions out of order.
CSV = (
    "Partition_ID,Subject_ID\r\n"
    "2,FeTS2022_00005\r\n"
    "1,FeTS2022_01341\r\n"
    "10,FeTS2022_00009\r\n"
    "1,FeTS2022_01333\r\n"
)


def write_cases(root: Path, *cases: str) -> None:
    for case in cases:
        (root / case).mkdir(parents=True)
        for ending in ("t1", "t1ce", "t2", "flair", "seg"):
            (root / case / f"{case}_{ending}.nii.gz").touch()


def test_institutions_become_sites_that_read_their_own_cases_only(tmp_path: Path) -> None:
    root, partition = tmp_path / "data", tmp_path / "partitioning_1.csv"
    write_cases(root, "FeTS2022_00005", "FeTS2022_01341", "FeTS2022_00009", "FeTS2022_01333")
    partition.write_bytes(CSV.encode())
    files = write_fets_sites(root, partition=partition, out=tmp_path / "sites", held_out=0.5)
    assert [file.name for file in files] == ["fets-01.toml", "fets-02.toml", "fets-10.toml"]
    first = load_site(files[0])
    assert [p.patient_id for p in read_cohort(first.data).patients] == [
        "FeTS2022_01333",
        "FeTS2022_01341",
    ]
    assert first.declared_patients == 1
    assert first.purpose == "open-data"
    everyone = [p.patient_id for f in files for p in read_cohort(load_site(f).data).patients]
    assert len(everyone) == len(set(everyone)) == 4


def test_small_institutions_can_be_left_out(tmp_path: Path) -> None:
    partition = tmp_path / "p.csv"
    partition.write_text(CSV)
    files = write_fets_sites(
        tmp_path, partition=partition, out=tmp_path / "sites", held_out=0.0, at_least=2
    )
    assert [file.name for file in files] == ["fets-01.toml"]
    with pytest.raises(DataError, match="an institution with 3 cases, found none"):
        write_fets_sites(
            tmp_path, partition=partition, out=tmp_path / "none", held_out=0.0, at_least=3
        )


def test_a_listed_case_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    root, partition = tmp_path / "data", tmp_path / "p.csv"
    write_cases(root, "FeTS2022_00005", "FeTS2022_01341")
    partition.write_text(CSV)
    files = write_fets_sites(root, partition=partition, out=tmp_path / "sites", held_out=0.0)
    (problem,) = survey_cohort(load_site(files[0]).data).problems
    assert problem.patient_id == "FeTS2022_01333"
    assert "below data.root" in problem.rule
    (tmp_path / "sites" / "fets-01.cases").unlink()
    (problem,) = survey_cohort(load_site(files[0]).data).problems
    assert "data.include" in problem.rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "expected the columns"),
        ("Subject_ID,Partition_ID\n", "expected the columns Partition_ID,Subject_ID"),
        ("Partition_ID,Subject_ID\n", "at least one case"),
        ("Partition_ID,Subject_ID\n1\n", "line 2: expected two values, found '1'"),
        ("Partition_ID,Subject_ID\n../1,a\n", "line 2: expected two values"),
        ("Partition_ID,Subject_ID\n1,a\n2,a\n", "line 3: expected each case once, found a in"),
    ],
    ids=["empty", "swapped", "no rows", "one column", "path", "doubled"],
)
def test_a_damaged_partition_is_refused_with_its_line(text: str, rule: str, tmp_path: Path) -> None:
    partition = tmp_path / "p.csv"
    partition.write_text(text)
    with pytest.raises(DataError, match=rule):
        read_partition(partition)


def test_files_that_are_there_are_never_replaced(tmp_path: Path) -> None:
    partition = tmp_path / "p.csv"
    partition.write_text(CSV)
    with pytest.raises(DataError, match="new or empty folder"):
        write_fets_sites(tmp_path, partition=partition, out=tmp_path, held_out=0.0)
    with pytest.raises(DataError, match="expected a readable file"):
        read_partition(tmp_path / "away.csv")
