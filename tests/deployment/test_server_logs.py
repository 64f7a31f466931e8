"""Logs of a server stay short, and what a process writes into an open one is not lost."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medfl.deployment.coordinator import server_logs
from medfl.deployment.coordinator.server_logs import KEPT, rotate_logs


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_logs, "MAX_BYTES", 100)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_a_process_goes_on_writing_into_the_log_that_it_holds_open(tmp_path: Path) -> None:
    log = tmp_path / "superlink.log"
    with log.open("ab", buffering=0) as held:
        held.write(b"a" * 101)
        rotate_logs(tmp_path)
        held.write(b"after")
    assert contents(tmp_path) == {"superlink.log": "after", "superlink.log.1": "a" * 101}


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "superlink.log").write_text("a" * 100)
    rotate_logs(tmp_path)
    assert contents(tmp_path) == {"superlink.log": "a" * 100}


def test_the_oldest_lines_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "superexec.log"
    (tmp_path / "another.txt").write_text("x" * 200)
    for number in range(KEPT + 3):
        log.write_text(f"{number}" * 101)
        rotate_logs(tmp_path)
    found = contents(tmp_path)
    assert found.pop("another.txt") == "x" * 200
    assert found.pop("superexec.log") == ""
    last = KEPT + 2
    assert found == {
        f"superexec.log.{age}": f"{last + 1 - age}" * 101 for age in range(1, KEPT + 1)
    }


def test_an_earlier_log_is_as_private_as_the_log(tmp_path: Path) -> None:
    log = tmp_path / "superlink.log"
    log.write_text("a" * 101)
    log.chmod(0o600)
    rotate_logs(tmp_path)
    assert stat.S_IMODE((tmp_path / "superlink.log.1").stat().st_mode) == 0o600


def test_a_folder_without_logs_is_no_problem(tmp_path: Path) -> None:
    rotate_logs(tmp_path / "logs")
    assert list(tmp_path.iterdir()) == []
