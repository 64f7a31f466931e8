"""`medfl rehearse` plays what the guides say, by real processes, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from medfl.config import load_site
from medfl.config.site_template import SITE_FILE
from tests.processes import processes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GUIDES = Path(__file__).resolve().parents[2] / "notebooks" / "guides"
SECTIONS = {"hospital.md": "Join", "coordinator.md": "Lead a study"}
SECONDS = 1700

T = TypeVar("T")


def started(scratch: Path, *options: object) -> subprocess.Popen[str]:
    """A rehearsal whose files and whose account's witness would lie in a scratch folder."""
    # Longer than the path of a socket may be, as a batch system's folders often are.
    temporary = scratch / "tmp" / ("far-down-in-a-tree-" * 4)
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "HOME": str(scratch / "home"),
        "XDG_STATE_HOME": str(scratch / "account"),
    }
    for folder in (temporary, scratch / "home"):
        folder.mkdir(parents=True)
    return subprocess.Popen(
        [sys.executable, "-m", "medfl", "rehearse", *map(str, options)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def site_process(rehearsal: int, *, name: str) -> psutil.Process | None:
    """The process of a hospital, once there is one."""
    for process in psutil.Process(rehearsal).children():
        words = process.cmdline()
        if words[2:5] == ["medfl", "site", "start"] and f"/{name}/" in words[5]:
            return process
    return None


def wait_for(condition: Callable[[], T | None]) -> T:
    """The first value of a condition."""
    deadline = time.monotonic() + SECONDS
    while (value := condition()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def left_in(scratch: Path) -> list[Path]:
    """Files that a rehearsal has left outside of the folder that it keeps."""
    return [path for path in scratch.rglob("*") if path.is_file() and "kept" not in path.parts]


def asked_for(line: str) -> tuple[str, frozenset[str]]:
    """Command and options of a line of a shell."""
    words = shlex.split(line, comments=True)[1:]
    names = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
    options = {word for word in words if word.startswith("--")}
    return " ".join(names), frozenset(options - {"--watch"})


def commands_of_the_guides() -> set[tuple[str, frozenset[str]]]:
    """What hospitals and the coordinator are told to type, to join and to run a study."""
    commands = set()
    for guide, title in SECTIONS.items():
        text = (GUIDES / guide).read_text(encoding="utf-8")
        (section,) = re.findall(rf"^## {title}\n(.*?)^## ", text, flags=re.M | re.S)
        blocks = re.findall(r"^```\n(.*?)^```", section, flags=re.M | re.S)
        lines = [line for block in blocks for line in block.splitlines()]
        of_guide = {asked_for(line) for line in lines if line.startswith("medfl ")}
        assert of_guide
        commands |= of_guide
    return commands


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


@pytest.fixture(scope="module")
def kept(scratch: Path) -> Path:
    """The folder of a rehearsal with two hospitals."""
    folder = scratch / "kept"
    rehearsal = started(scratch, "--hospitals", 2, "--keep", folder)
    out, said = rehearsal.communicate(timeout=SECONDS)
    assert rehearsal.returncode == 0, said
    assert "Every ledger is whole" in out
    assert "study, rounds: 2/2" in said
    return folder


def test_every_command_of_the_guides_is_played(kept: Path) -> None:
    lines = (kept / "logs" / "commands.log").read_text().splitlines()
    played = {asked_for(line.removeprefix("$ ")) for line in lines if line.startswith("$ medfl ")}
    wanted = commands_of_the_guides()
    assert len(wanted) > 8
    for command, options in wanted:
        assert any(name == command and options <= more for name, more in played), command
    assert {"ledger verify", "ledger export", "ledger check-export"} <= {name for name, _ in played}


def test_two_hospitals_have_trained_and_paid(kept: Path) -> None:
    rounds = [json.loads(line) for line in (kept / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in rounds] == [1, 2]
    for record in rounds:
        assert {each["outcome"] for each in record["sites"].values()} == {"admitted"}
    assert (kept / "run" / "report.html").stat().st_size > 10_000
    for name in ("north", "east"):
        export = json.loads((kept / f"{name}-ledger.json").read_text())
        kinds = [json.loads(entry["body"])["kind"] for entry in export["entries"]]
        assert kinds.count("charge") == 2


def test_a_hospital_takes_one_thread_and_keeps_its_state_to_itself(kept: Path) -> None:
    for name in ("north", "east"):
        site = load_site(kept / "hospitals" / "state" / name / SITE_FILE)
        assert site.threads == 1
        assert site.state.stat().st_mode & 0o777 == 0o700


def test_nothing_is_left_but_what_is_kept(kept: Path, scratch: Path) -> None:
    assert processes_of(scratch) == []
    assert left_in(scratch) == []


def test_a_secure_sum_is_rehearsed_and_removed(tmp_path: Path) -> None:
    rehearsal = started(tmp_path, "--trust", "secure", "--hospitals", 3)
    out, said = rehearsal.communicate(timeout=SECONDS)
    assert rehearsal.returncode == 0, said
    assert "trust secure" in out
    assert all(name in out for name in ("north", "east", "south"))
    assert processes_of(tmp_path) == []
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "part"), [(signal.SIGTERM, "hospitals connect"), (signal.SIGINT, "hospitals join")]
)
def test_whoever_stops_it_finds_nothing_left(number: int, part: str, tmp_path: Path) -> None:
    rehearsal = started(tmp_path, "--hospitals", 2)
    assert rehearsal.stderr is not None
    for line in rehearsal.stderr:
        if line.startswith(part):
            break
    time.sleep(2)
    rehearsal.send_signal(number)
    _, said = rehearsal.communicate(timeout=300)
    assert rehearsal.returncode == 130, said
    assert "error: Stopped" in said
    assert "Traceback" not in said
    assert processes_of(tmp_path) == []
    assert left_in(tmp_path) == []


def test_a_hospital_that_dies_is_named(tmp_path: Path) -> None:
    rehearsal = started(tmp_path, "--hospitals", 2)
    assert rehearsal.stderr is not None
    for line in rehearsal.stderr:
        if line.startswith("hospitals connect"):
            break
    wait_for(lambda: site_process(rehearsal.pid, name="east")).kill()
    _, said = rehearsal.communicate(timeout=300)
    assert rehearsal.returncode == 1, said
    assert "error: east ended with exit code" in said
    assert "east.log" in said
    assert processes_of(tmp_path) == []
    assert left_in(tmp_path) == []
