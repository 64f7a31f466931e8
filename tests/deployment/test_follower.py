"""Who started a run sees what another process writes into its folder, once and in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medfl.deployment.coordinator.follower import Follower
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import Declaration
from medfl.runs.attendance import Absence, Attendance
from medfl.runs.files import WAITING
from medfl.runs.records import Round, SiteRound
from medfl.runs.waiting import AGREEING, CONNECTING, Waiting
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.study.pretraining_progress import write_progress


class Seen(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def planned(self, declarations: Sequence[Declaration], *, rounds: int) -> None:
        self.told += [(declaration.site, rounds) for declaration in declarations]

    def round_finished(self, record: Round) -> None:
        self.told.append(record)


def record(number: int) -> Round:
    outcome = SiteRound(outcome="admitted", code="", epsilon=math.inf, budget=8.0, steps=1)
    return Round(round=number, seconds=1.5, sites={"north": outcome})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def declaration(voice_of: Any) -> Declaration:
    mechanism = Mechanism(
        sampling_prob=0.5,
        noise_multiplier=2.0,
        clip_norm=1.0,
        clipping="normalised",
        local_steps=1,
        declared_patients=20,
    )
    declared: Declaration = voice_of("north", mechanism=mechanism).declaration()
    return declared


def test_everything_new_is_told_once(folder: RunFolder, declaration: Declaration) -> None:
    seen = Seen()
    follower = Follower(folder, rounds=9, progress=seen)
    follower.look()
    assert seen.told == []
    folder.append_declaration(declaration, after_events=0)
    follower.look()
    folder.append_round(record(1))
    folder.append_round(record(2))
    follower.look()
    follower.look()
    assert seen.told == [("north", 9), record(1), record(2)]


def test_what_a_resumed_run_had_done_before_is_not_told_again(
    folder: RunFolder, declaration: Declaration
) -> None:
    folder.append_declaration(declaration, after_events=0)
    folder.append_round(record(1))
    seen = Seen()
    follower = Follower(folder, rounds=9, progress=seen)
    folder.append_round(record(2))
    follower.look()
    assert seen.told == [record(2)]


def test_a_round_that_a_resumed_run_does_again_is_told_again(folder: RunFolder) -> None:
    folder.append_round(record(1))
    folder.append_round(record(2))
    seen = Seen()
    follower = Follower(folder, rounds=9, progress=seen)
    folder.truncate_tables(after_round=1, variant="federated")
    follower.look()
    assert seen.told == []
    folder.append_round(record(2))
    follower.look()
    assert seen.told == [record(2)]


class Heard(Silent):
    """Keeps phases and steps."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def phase(self, name: str) -> None:
        self.told.append(name)

    def advanced(self, done: int, total: int) -> None:
        self.told.append((done, total))


def test_a_pretraining_is_shown_until_the_first_model_is_there(
    folder: RunFolder, declaration: Declaration
) -> None:
    write_progress(folder.path)(9, 9)  # of an earlier try
    heard = Heard()
    follower = Follower(folder, rounds=9, progress=heard)
    follower.look()
    assert heard.told == []
    folder.append_declaration(declaration, after_events=0)
    follower.look()
    write_progress(folder.path)(2, 9)
    follower.look()
    follower.look()
    assert heard.told == ["first model", (2, 9)]
    folder.write_checkpoint("initial", b"a model")
    follower.look()
    follower.look()
    assert heard.told == ["first model", (2, 9), "rounds"]
    folder.write_checkpoint("final", b"a model")
    follower.look()
    follower.look()
    assert heard.told == ["first model", (2, 9), "rounds", "final model to the hospitals"]


def test_a_line_that_is_being_written_is_told_when_it_is_whole(folder: RunFolder) -> None:
    seen = Seen()
    follower = Follower(folder, rounds=9, progress=seen)
    folder.append_round(record(1))
    table = folder.path / "rounds.jsonl"
    whole = table.read_text()
    table.write_text(whole[:20])
    follower.look()
    assert seen.told == []
    table.write_text(whole)
    follower.look()
    assert seen.told == [record(1)]


class Asked(Silent):
    """Keeps who is waited for, and who is missing in the end."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def awaited(self, waiting: Waiting) -> None:
        self.told.append((waiting.phase, waiting.answered))

    def left_out(self, absent: Mapping[str, Absence]) -> None:
        self.told.append(sorted(absent))


def test_who_is_waited_for_and_who_is_missing_is_told_once(folder: RunFolder) -> None:
    # Of an earlier start, which was killed.
    stale = Waiting.begin(1, asked=("east", "north"), timeout=1.0, phase=CONNECTING)
    folder.write(WAITING, stale)
    folder.append_attendance(Attendance(first_round=1, absent={}))
    asked = Asked()
    follower = Follower(folder, rounds=9, progress=asked)
    follower.look()
    assert asked.told == []
    waiting = Waiting.begin(3, asked=("east", "north"), timeout=1.0, phase=AGREEING)
    folder.write(WAITING, waiting)
    follower.look()
    folder.write(WAITING, waiting.heard("east"))
    follower.look()
    follower.look()
    missing = {"north": Absence(code="silent", seconds=1.0)}
    folder.append_attendance(Attendance(first_round=3, absent=missing))
    # A round of the run itself is shown by its bars.
    folder.write(WAITING, Waiting.begin(3, asked=("east",), timeout=1.0))
    follower.look()
    follower.look()
    assert asked.told == [(AGREEING, ()), (AGREEING, ("east",)), ["north"]]
