"""`medfl check` as a hospital's administrator runs it before a study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site


@pytest.fixture
def north(hospital_file: Callable[..., Path]) -> Path:
    """The file of a hospital on its first day."""
    return hospital_file("north")


@pytest.fixture
def ready(medfl: Any, north: Path) -> Path:
    """The file of a hospital with keys and ledger."""
    assert medfl("site", "init", load_site(north).state).code == 0
    assert medfl("ledger", "init", north, "--yes").code == 0
    return north


def findings(ended: Any) -> list[dict[str, str]]:
    """What was printed as JSON."""
    found: list[dict[str, str]] = json.loads(ended.out)
    return found


def errors(ended: Any) -> list[str]:
    """Names of all errors."""
    return [finding["name"] for finding in findings(ended) if finding["severity"] == "error"]


def test_the_first_day_names_keys_and_ledger_with_the_commands_that_make_them(
    medfl: Any, north: Path
) -> None:
    ended = medfl("check", north, "--json")
    assert ended.code == 2
    state = load_site(north).state
    assert errors(ended) == [str(state / "keys"), str(state / "keys/node"), str(state / "ledger")]
    fixes = " ".join(finding["fix"] for finding in findings(ended))
    assert "medfl site init" in fixes
    assert "medfl ledger init" in fixes


def test_a_hospital_that_is_ready_ends_with_0(medfl: Any, ready: Path) -> None:
    ended = medfl("check", ready, "--json")
    assert ended.code == 0, ended.out
    assert errors(ended) == []


def test_a_study_is_tried_on_one_patient_without_a_charge(
    medfl: Any, ready: Path, study: Path
) -> None:
    ended = medfl("check", ready, "--study", study, "--json")
    assert ended.code == 0, ended.out
    (tried,) = [finding for finding in findings(ended) if finding["name"] == "study tiny"]
    assert "nothing is charged" in tried["rule"]
    assert "s forward and backward" in tried["value"]
    assert json.loads(medfl("budget", ready, "--json").out)["epsilon"] == 0


def test_without_a_study_and_a_server_neither_is_looked_at(medfl: Any, ready: Path) -> None:
    names = [finding["name"] for finding in findings(medfl("check", ready, "--json"))]
    assert names
    assert not [name for name in names if name.startswith("study") or ":" in name]


def test_a_wrong_study_and_a_wrong_server_are_found_beside_the_rest(
    medfl: Any, north: Path, study: Path
) -> None:
    study.write_text("id = 5")
    ended = medfl("check", north, "--study", study, "--server", "nowhere", "--json")
    assert ended.code == 2
    assert {str(study), "nowhere", str(load_site(north).state / "ledger")} <= set(errors(ended))


def test_an_authority_without_a_server_is_a_mistake(
    medfl: Any, ready: Path, tmp_path: Path
) -> None:
    medfl("check", ready, "--ca", tmp_path / "ca.crt").refused(2, "--ca", "--server")


def test_the_table_shows_every_finding_with_its_fix(medfl: Any, north: Path) -> None:
    ended = medfl("check", north)
    assert ended.code == 2
    assert "north: " in ended.out
    for part in ("error", "warning", "ledger", "site.pub"):
        assert part in ended.out


def test_brackets_in_a_name_are_shown_as_they_are(medfl: Any, north: Path, tmp_path: Path) -> None:
    ended = medfl("check", north, "--server", "[/b][red]")
    assert ended.code == 2
    assert "[/b][red]" in ended.out


def test_what_is_shared_keeps_every_fix_and_no_place_of_the_site(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    ended = medfl("check", north, "--shareable", "--json", "--study", tmp_path / "none.toml")
    assert ended.code == 2
    assert str(tmp_path) not in ended.out
    fixes = {finding["fix"] for finding in findings(ended)}
    assert "Make the keys once with `medfl site init STATE`, or restore them." in fixes
    assert "(not shared)" not in fixes
