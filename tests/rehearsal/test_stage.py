"""The stage of a rehearsal: what it refuses, what it says of an end, and that all ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medfl.deployment.processes import free_port
from medfl.errors import ConfigError, FederationError, Interrupted
from medfl.rehearsal import stage as stages
from medfl.rehearsal.stage import Stage, require_port, staged
from tests.processes import processes_of


@pytest.fixture
def stopped() -> threading.Event:
    return threading.Event()


@pytest.fixture
def stage(tmp_path: Path, stopped: threading.Event) -> Iterator[Stage]:
    made = Stage(tmp_path, stopped=stopped)
    yield made
    made.end()


@pytest.fixture(autouse=True)
def without_a_witness_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "var-lib" / "medfl-witness"
    monkeypatch.setattr(stages, "SYSTEM_FOLDER", folder)
    return folder


@pytest.mark.slow
def test_a_command_that_fails_is_named_with_its_last_lines(stage: Stage) -> None:
    with pytest.raises(
        FederationError, match=r"`medfl budget nowhere\.toml` ended with 2"
    ) as caught:
        stage.run("budget", "nowhere.toml")
    assert "nowhere.toml: expected" in str(caught.value)
    assert "$ medfl budget nowhere.toml" in stage.log("commands").read_text()


@pytest.mark.slow
def test_a_process_that_ends_in_the_background_is_named_with_its_last_lines(stage: Stage) -> None:
    stage.start("north", "budget", "nowhere.toml")
    with pytest.raises(FederationError, match="north ended with exit code") as caught:
        stage.wait_until(lambda: "something", seconds=300)
    assert str(stage.log("north")) in str(caught.value)
    assert "nowhere.toml: expected" in str(caught.value)


def test_who_waits_for_ever_is_told_for_what(stage: Stage) -> None:
    with pytest.raises(FederationError, match=r"Expected north to connect within 0\.1 s"):
        stage.wait_until(lambda: "north to connect", seconds=0.1)


def test_who_waits_is_stopped(stage: Stage, stopped: threading.Event) -> None:
    stopped.set()
    with pytest.raises(Interrupted):
        stage.wait_until(lambda: "something", seconds=300)


@pytest.mark.slow
def test_the_end_of_a_stage_is_the_end_of_its_processes(stage: Stage, tmp_path: Path) -> None:
    stage.run("server", "init", tmp_path / "server", "--host", "127.0.0.1", "--port", free_port())
    stage.start("server", "server", "start", tmp_path / "server")
    log = stage.log("server")
    stage.wait_until(lambda: "" if "Serving" in log.read_text() else "a server", seconds=300)
    assert len(processes_of(tmp_path)) >= 3
    stage.end()
    assert processes_of(tmp_path) == []


def test_a_folder_goes_with_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.tempfile, "tempdir", str(tmp_path))
    with staged(None, hospitals=2) as stage:
        assert stage.folder.parent == tmp_path
        assert stage.folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_kept_stays(tmp_path: Path) -> None:
    with staged(tmp_path / "kept", hospitals=2) as stage:
        (stage.folder / "report").touch()
    assert (tmp_path / "kept" / "report").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with (
        pytest.raises(ConfigError, match="--keep: expected a new or empty folder"),
        staged(tmp_path, hospitals=2),
    ):
        pass
    assert (tmp_path / "report").exists()


def test_a_small_disk_is_refused_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(stages.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**7))
    with (
        pytest.raises(ConfigError, match=r"expected 0\.2 GB of free disk for 10 hospitals"),
        staged(None, hospitals=10),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_would_remember_for_ever_is_refused(
    without_a_witness_of_the_machine: Path,
) -> None:
    without_a_witness_of_the_machine.mkdir(parents=True)
    with (
        pytest.raises(ConfigError, match="it never forgets"),
        staged(None, hospitals=2),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_every_signal_that_asks_for_an_end_is_heard(number: int, tmp_path: Path) -> None:
    before: Any = signal.getsignal(number)
    with staged(tmp_path / "kept", hospitals=2) as stage:
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            stage.wait_until(lambda: "something", seconds=60)
    assert signal.getsignal(number) is before


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"expected a free port of .* found {port}"):
            require_port(port)
    require_port(port)
