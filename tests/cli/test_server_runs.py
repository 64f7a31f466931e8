"""`medfl server runs`, `stop` and `logs`, and what `server run` says before it begins."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.cli import main
from medfl.cli.run_log import Together, log_console
from medfl.cli.server_runs import show
from medfl.deployment.coordinator.run_book import RunRecord, RunStopped
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.lock import exclusive
from medfl.errors import FederationError
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder

Medfl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def medfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Medfl:
    """Runs the command line: exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfl", "server", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("medfl.cli.app.end_on_signals", lambda: None)
        with pytest.raises(SystemExit) as end:
            main()
        seen = capsys.readouterr()
        return int(end.value.code or 0), seen.out, seen.err

    return run


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", host="localhost", port=8443)


@pytest.fixture
def record(tmp_path: Path, federation: Any) -> RunRecord:
    out = tmp_path / "run"
    RunFolder(out).begin(run="gliomas-1", study=federation.study(id="gliomas"))
    return RunRecord.begin("gliomas-1", study="gliomas", out=out, detached=True)


def test_runs_are_listed_with_how_they_are(
    medfl: Medfl, server: ServerFolder, record: RunRecord
) -> None:
    code, out, _ = medfl("runs", server.path)
    assert (code, "No run yet" in out) == (0, True)
    with server.book.following(record):
        assert "under way" in medfl("runs", server.path)[1]
    with pytest.raises(FederationError), server.book.following(record):
        raise FederationError("Too few sites.")
    code, out, _ = medfl("runs", server.path)
    assert code == 0
    for shown in ("gliomas-1", "0 of 2", "failed: Too few sites.", str(record.out)):
        assert shown in out
    (row,) = json.loads(medfl("runs", server.path, "--json")[1])
    assert (row["run"], row["outcome"], row["reason"], row["done"], row["rounds"]) == (
        "gliomas-1",
        "failed",
        "Too few sites.",
        0,
        2,
    )


def test_a_run_folder_that_was_moved_away_is_still_a_run(
    medfl: Medfl, server: ServerFolder, record: RunRecord
) -> None:
    with server.book.following(record):
        pass
    record.out.rename(record.out.with_name("elsewhere"))
    (row,) = json.loads(medfl("runs", server.path, "--json")[1])
    assert (row["outcome"], row["done"]) == ("completed", None)
    assert medfl("runs", server.path)[0] == 0


def test_a_run_is_stopped_wherever_it_was_started(
    medfl: Medfl, server: ServerFolder, record: RunRecord
) -> None:
    begun = threading.Event()

    def follow() -> None:
        with pytest.raises(RunStopped), server.book.following(record):
            begun.set()
            while not server.book.is_to_stop(record):
                time.sleep(0.02)
            raise RunStopped("Stopped.")

    following = threading.Thread(target=follow)
    following.start()
    assert begun.wait(60)
    code, out, _ = medfl("stop", server.path, "gliomas")
    following.join(60)
    assert code == 0
    assert f"gliomas-1: stopped. Run folder: {record.out}" in out
    assert "--resume" in out


@pytest.mark.parametrize("command", ["stop", "logs"])
def test_a_run_that_nobody_knows_is_refused_with_those_that_are_known(
    command: str, medfl: Medfl, server: ServerFolder, record: RunRecord
) -> None:
    code, _, err = medfl(command, server.path, "other")
    assert (code, "(no run yet), found 'other'" in err) == (2, True)
    with server.book.following(record):
        pass
    code, _, err = medfl(command, server.path, "other")
    assert (code, "(gliomas-1), found 'other'" in err) == (2, True)


def test_a_run_that_has_ended_is_not_stopped(
    medfl: Medfl, server: ServerFolder, record: RunRecord
) -> None:
    with server.book.following(record):
        pass
    code, _, err = medfl("stop", server.path, "gliomas-1")
    assert code == 2
    assert "gliomas-1 is not under way; it ended at" in err
    assert "completed" in err
    # Nothing is left that would stop it when it goes on.
    assert not server.book.is_to_stop(record)


def test_the_log_of_a_run_has_the_time_in_front_of_every_line(
    medfl: Medfl, server: ServerFolder, record: RunRecord
) -> None:
    with server.book.following(record):
        log = log_console(server.book.log(record))
        log.print("rounds")
        log.print("a line that is longer than a terminal is wide " * 5)
        code, out, err = medfl("logs", server.path, "gliomas-1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2
    assert all(line[4] == "-" and line[19:21] == "Z " for line in lines)
    code, out, err = medfl("logs", server.path, "gliomas-1", "--follow")
    assert (code, len(out.splitlines()), err) == (0, 2, "gliomas-1: completed\n")


def test_a_log_is_shown_to_its_end_and_no_line_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    coming = iter(["", "first\n", "sec", "ond\n"])
    left = iter([True, True, True, True, False])

    def wait(_: float) -> None:
        with log.open("a") as file:
            file.write(next(coming))

    show(log, goes_on=lambda: next(left), wait=wait)
    assert capsys.readouterr().out == "first\nsecond\n"


@pytest.mark.parametrize("flags", [(), ("--detach",), ("--resume", "--require-all")])
def test_a_study_says_at_once_what_it_is_and_that_no_server_runs(
    flags: tuple[str, ...], medfl: Medfl, server: ServerFolder, study: Path, tmp_path: Path
) -> None:
    code, _, err = medfl("run", server.path, study, "--out", tmp_path / "run", *flags)
    assert code == 1
    first, second = err.splitlines()
    assert first.startswith(
        "Study tiny: 2 rounds with at least 1 of the admitted hospitals (nobody)"
    )
    assert "expected a running server (`medfl server start`), found none" in second
    assert not (tmp_path / "run").exists()


def test_several_who_watch_are_all_told(federation: Any) -> None:
    class Heard(Silent):
        def phase(self, name: str) -> None:
            told.append(name)

    told: list[str] = []
    together = Together(Heard(), Heard())
    together.phase("rounds")
    together.shown.pop()
    together.phase("report")
    assert told == ["rounds", "rounds", "report"]


def test_a_run_folder_that_a_run_works_in_is_refused_with_one_clear_error(
    medfl: Medfl, server: ServerFolder, record: RunRecord, study: Path, tmp_path: Path
) -> None:
    with exclusive(server.server_lock, noun="a server"), server.book.following(record):
        for flags in ((), ("--resume",), ("--detach",)):
            code, _, err = medfl("run", server.path, study, "--out", record.out, *flags)
            assert code == 1
            first, beside, error = err.splitlines()
            assert first.startswith("Study tiny: ")
            assert beside.startswith(f"Beside gliomas-1 (in {record.out}): ")
            assert f"found gliomas-1 (in {record.out}); choose another --out" in error
            assert ".lock" not in err
        server.require_no_run_in(tmp_path / "other")
    server.require_no_run_in(record.out)


def test_status_names_the_other_runs_that_are_under_way(
    medfl: Medfl, server: ServerFolder, record: RunRecord, tmp_path: Path, federation: Any
) -> None:
    out = tmp_path / "second"
    RunFolder(out).begin(run="second-1", study=federation.study(id="second"))
    later = RunRecord.begin("second-1", study="second", out=out, detached=True)
    with server.book.following(record), server.book.following(later):
        _, both, _ = medfl("status", server.path, "--run", "gliomas-1")
        assert f"in {record.out}" in both
        assert "Also under way: second-1 (study second); --run second-1 shows it." in both
        assert "Also under way: gliomas-1" not in both
    _, ended, _ = medfl("status", server.path)
    assert "Also under way" not in ended


def test_a_server_that_runs_already_is_not_started_again(
    medfl: Medfl, server: ServerFolder
) -> None:
    with exclusive(server.server_lock, noun="a server"):
        code, _, err = medfl("start", server.path)
    assert (code, "is already running" in err) == (1, True)
    assert ".lock" not in err
