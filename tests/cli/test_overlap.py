"""`medfl overlap`: the key, the tokens of two hospitals, and what their comparison says."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config.study import StudyOverlap
from medfl.phantom.hospitals import write_hospitals

Medfl = Callable[..., Any]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny hospitals; one of south's two patients is also at west, under the same name."""
    folder = tmp_path_factory.mktemp("overlap") / "hospitals"
    write_hospitals(
        folder,
        patients=(2, 2, 2, 2),
        shape=(20, 20, 16),
        spacing=(9.0, 9.0, 10.0),
        skull_stripped=True,
        seed=3,
        on_patient=lambda: None,
    )
    shared = names(folder, "south")[0]
    shutil.copytree(folder / "south" / shared, folder / "west" / shared)
    return folder


def names(hospitals: Path, site: str) -> list[str]:
    return sorted(path.name for path in (hospitals / site).iterdir() if path.is_dir())


@pytest.fixture
def key(medfl: Medfl, tmp_path: Path) -> Path:
    path = tmp_path / "study.key"
    assert medfl("overlap", "key", path).code == 0
    return path


def tokens(medfl: Medfl, hospitals: Path, site: str, key: Path, *more: object) -> Path:
    out = key.with_name(f"{site}.json")
    ended = medfl("overlap", "tokens", hospitals / f"{site}.toml", "--key", key, "-o", out, *more)
    assert ended.code == 0, ended.err
    assert not any(name in ended.out + ended.err for name in names(hospitals, site))
    assert not any(name in out.read_text() for name in names(hospitals, site))
    return out


def refused(ended: Any, *parts: object) -> None:
    """One sentence on standard error, with all of the parts."""
    assert ended.out == ""
    ended.refused(2, *parts)


def test_shared_patients_are_found_and_the_study_file_is_told(
    medfl: Medfl, hospitals: Path, key: Path
) -> None:
    files = [tokens(medfl, hospitals, site, key) for site in ("north", "south", "west")]
    ended = medfl("overlap", "compare", *files)
    assert ended.code == 0
    assert "north and south: 0 shared patients" in ended.out
    assert "south and west: 1 shared patient\n" in ended.out
    declared = tomllib.loads(ended.out[ended.out.index("[[overlap]]") :])["overlap"]
    assert [StudyOverlap.model_validate_json(json.dumps(group)).sites for group in declared] == [
        ("south", "west")
    ]
    found = json.loads(medfl("overlap", "compare", "--json", *files).out)
    assert found["groups"] == [["south", "west"]]
    assert {"sites": ["south", "west"], "patients": 1} in found["pairs"]


def test_sites_that_share_nobody_have_nothing_to_declare(
    medfl: Medfl, hospitals: Path, key: Path
) -> None:
    ended = medfl(
        "overlap", "compare", *(tokens(medfl, hospitals, site, key) for site in ("north", "east"))
    )
    assert ended.code == 0
    assert "north and east: 0 shared patients" in ended.out
    assert "Nothing to declare" in ended.out
    assert "[[overlap]]" not in ended.out


def test_a_common_identifier_finds_a_person_with_two_names(
    medfl: Medfl, hospitals: Path, key: Path, tmp_path: Path
) -> None:
    files = []
    for site, number in (("north", "4711 x"), ("east", "47-11X")):
        first, second = names(hospitals, site)
        table = tmp_path / f"{site}.csv"
        table.write_text(f"patient,identifier\n{first},{number}\n{second},{site}\n")
        files.append(tokens(medfl, hospitals, site, key, "--identifiers", table))
    assert "north and east: 1 shared patient\n" in medfl("overlap", "compare", *files).out


def test_mistakes_end_in_one_sentence(
    medfl: Medfl, hospitals: Path, key: Path, tmp_path: Path
) -> None:
    refused(medfl("overlap", "key", key), "study.key", "expected a new file")
    north = tokens(medfl, hospitals, "north", key)
    site = hospitals / "east.toml"
    refused(medfl("overlap", "tokens", site, "--key", key, "-o", north), "expected a new file")
    table = tmp_path / "some.csv"
    table.write_text("patient,identifier\nsomebody,1\n")
    make = ("overlap", "tokens", site, "--key", key, "-o", tmp_path / "east.json")
    refused(medfl(*make, "--identifiers", table), "found 2 patients without one")
    assert not (tmp_path / "east.json").exists()
    refused(medfl("overlap", "compare", north), "two or more distinct sites")
    key.chmod(0o644)
    refused(medfl(*make), "found mode 0644")
    key.unlink()
    assert medfl("overlap", "key", key).code == 0
    east = tokens(medfl, hospitals, "east", key)
    refused(medfl("overlap", "compare", north, east), "one study key, found several")
    east.write_text(east.read_text()[:-9])
    refused(medfl("overlap", "compare", north, east), "east.json", "a damaged one")
