"""A server's child that is killed is started again; one that does not stay ends the server."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from medfl.deployment.coordinator import server
from medfl.deployment.coordinator.server import Child
from medfl.errors import FederationError


def child(tmp_path: Path, *, script: str) -> Child:
    command = ["/bin/sh", "-c", script]
    return Child("sleeper", command, log=tmp_path / "log", environment=dict(os.environ))


def test_a_killed_child_is_started_again(tmp_path: Path, wait_for: Any) -> None:
    sleeper = child(tmp_path, script="echo $$; exec sleep 600")
    try:
        first = int(wait_for((tmp_path / "log").read_text, seconds=30, what="a number"))
        assert not sleeper.revive()
        os.kill(first, signal.SIGKILL)
        wait_for(sleeper.revive, seconds=30, what="a killed child")
        numbers = wait_for(
            lambda: (tmp_path / "log").read_text().split()[1:], seconds=30, what="another number"
        )
        assert int(numbers[0]) != first
        assert not sleeper.revive()
    finally:
        sleeper.stop()


def test_a_child_that_does_not_stay_is_given_up(tmp_path: Path, wait_for: Any) -> None:
    failing = child(tmp_path, script="exit 3")
    with pytest.raises(FederationError, match=r"The sleeper ended with exit code 3; see"):
        wait_for(lambda: failing.revive() and False, seconds=60, what="an end")


@pytest.mark.slow
def test_a_child_that_lived_for_some_time_is_started_as_often_as_it_ends(
    tmp_path: Path, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SHORT_LIFE_SECONDS", 0.0)
    ending = child(tmp_path, script="exit 3")
    for _ in range(5):
        wait_for(ending.revive, seconds=30, what="an end")
    ending.stop()
