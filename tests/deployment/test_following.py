"""A command and the ServerApp of its run watch each other: neither goes on alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medfl.deployment.coordinator import deployed_study, server_component
from medfl.deployment.coordinator.deployed_study import follow
from medfl.deployment.coordinator.follower import Follower
from medfl.deployment.coordinator.job import Job, lock_path, read_job
from medfl.deployment.coordinator.run_book import RunStopped
from medfl.deployment.coordinator.server_component import followed
from medfl.deployment.coordinator.server_folder import FOLDER_VARIABLE
from medfl.deployment.flower.control import RunState, Unreachable
from medfl.deployment.lock import exclusive, is_held
from medfl.errors import FederationError
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder

RUN = 7


@pytest.fixture
def job(federation: Any, tmp_path: Path) -> Job:
    return Job(run="first", study=federation.study(), out=tmp_path / "out", sites={})


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


def test_a_lock_is_held_within_its_block_only(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    with exclusive(path, noun="a thing"):
        assert is_held(path)
    assert not is_held(path)


def test_a_lock_is_waited_for_with_patience(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive(path, noun="a thing"):
        waiting = threading.Thread(target=_lock_patiently, args=(path,))
        waiting.start()
    waiting.join(timeout=30)
    assert (tmp_path / "got it").exists()


def _lock_patiently(path: Path) -> None:
    with exclusive(path, noun="a thing", patience_seconds=30):
        path.with_name("got it").touch()


def test_a_job_lies_there_under_a_lock_for_as_long_as_somebody_follows(
    job: Job, jobs: Path
) -> None:
    (jobs / "6.json").write_text("of a command that was killed")
    with job.posted(jobs, run=RUN):
        assert read_job(RUN) == job
        assert is_held(lock_path(jobs, RUN))
        assert not (jobs / "6.json").exists()
    assert not is_held(lock_path(jobs, RUN))
    assert list(jobs.iterdir()) == []


def test_the_job_of_another_run_under_way_stays(job: Job, jobs: Path) -> None:
    with job.posted(jobs, run=6):
        with job.posted(jobs, run=RUN):
            assert read_job(6) == read_job(RUN) == job
        assert read_job(6) == job


@pytest.mark.slow
def test_a_run_that_nobody_follows_any_more_is_ended_once(
    job: Job, jobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_component, "POLL_SECONDS", 0.05)
    alone = threading.Event()
    with job.posted(jobs, run=RUN), followed(lock_path(jobs, RUN), on_alone=alone.set):
        assert not alone.wait(0.5)
    # It came to its end first.
    assert not alone.wait(0.5)
    with followed(lock_path(jobs, RUN), on_alone=alone.set):
        assert alone.wait(30)


class Flower:
    """Says that a run goes on, or what else it was given."""

    def __init__(self, *states: RunState | Exception) -> None:
        self._states: Iterator[RunState | Exception] = iter(states)

    def state(self, run: int) -> RunState:
        assert run == RUN
        state = next(self._states, RunState(finished=False, completed=False, details=""))
        if isinstance(state, Exception):
            raise state
        return state


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    return Follower(RunFolder(tmp_path / "out"), rounds=1, progress=Silent())


def test_a_serverapp_that_vanished_is_missed(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed_study, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(deployed_study, "GONE_SECONDS", 0.2)
    lock = tmp_path / "run.lock"
    held = exclusive(lock, noun="a run folder")
    held.__enter__()
    ending = threading.Timer(0.5, held.__exit__, args=(None, None, None))
    ending.start()
    begin = time.monotonic()
    with pytest.raises(
        FederationError, match=r"ended without giving a reason; see the server's logs. Con"
    ):
        follow(Flower(), RUN, follower, lock=lock, stopped=lambda: False)
    assert time.monotonic() - begin > 0.5


def test_a_serverapp_that_has_not_begun_is_waited_for_and_a_server_that_is_away_too(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed_study, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(deployed_study, "GONE_SECONDS", 0.0)
    going = RunState(finished=False, completed=False, details="")
    end = RunState(finished=True, completed=True, details="")
    away = Unreachable("away")
    states = Flower(going, away, away, going, end)
    lock = tmp_path / "run.lock"
    assert follow(states, RUN, follower, lock=lock, stopped=lambda: False) is end


def test_a_run_that_somebody_stops_is_followed_no_longer(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed_study, "POLL_SECONDS", 0.01)
    looks = iter([False, False, True])
    # Also where the server is away.
    states = Flower(Unreachable("away"), Unreachable("away"))
    with pytest.raises(RunStopped, match="Continue with --resume"):
        follow(states, RUN, follower, lock=tmp_path / "run.lock", stopped=lambda: next(looks))


def test_an_error_that_nobody_foresaw_is_named_with_the_log(
    jobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(run: int) -> Job:
        raise KeyError(run)

    monkeypatch.setattr(server_component, "read_job", damaged)
    context: Any = SimpleNamespace(run_id=RUN)
    with pytest.raises(FederationError, match=r"KeyError\(7\); see .*logs/superexec\.log"):
        server_component.main(None, context)


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("ServerApp failed with exception: Expected 3 sites.", "Expected 3 sites."),
        ("Task stopped by user.", "Task stopped by user."),
        ("ServerApp failed with exception: ", "gave no reason; see the server's logs"),
        ("", "gave no reason; see the server's logs"),
    ],
)
def test_a_failed_run_says_why_in_its_own_words(details: str, said: str) -> None:
    state = RunState(finished=True, completed=False, details=details)
    assert said in deployed_study._why(state)
    assert "failed with exception" not in deployed_study._why(state)
