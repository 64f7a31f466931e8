"""One record for each run of a server: how it is found, followed, stopped, and how it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medfl.deployment.coordinator.run_book import (
    RunBook,
    RunRecord,
    RunStopped,
    require_under_way,
    wait_until_ended,
)
from medfl.errors import ConfigError, FederationError


@pytest.fixture
def book(tmp_path: Path) -> RunBook:
    return RunBook(tmp_path / "runs")


def record(run: str, *, out: Path = Path("/nowhere")) -> RunRecord:
    return RunRecord.begin(run, study="gliomas", out=out, detached=True)


def test_a_run_is_under_way_for_as_long_as_somebody_follows_it(book: RunBook) -> None:
    assert book.records() == book.under_way() == []
    run = record("gliomas-1")
    with book.following(run):
        assert book.under_way() == book.records() == [run]
        assert book.state(run) == "under way"
        with pytest.raises(FederationError), book.following(run):
            pytest.fail("Nobody else follows it.")
    assert book.under_way() == []
    (ended,) = book.records()
    assert (ended.outcome, ended.process) == ("completed", os.getpid())
    assert ended.ended is not None
    assert book.state(ended) == "completed"
    with pytest.raises(
        ConfigError, match=r"gliomas-1 is not under way; it ended at [\d: -]+ UTC: completed"
    ):
        require_under_way(book, ended)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (FederationError("Too few sites."), "failed: Too few sites."),
        (OSError(28, "No space left on device"), "failed: [Errno 28] No space left on device"),
        (KeyError("x"), "failed: KeyError('x')"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(143), "stopped"),
        (RunStopped("Stopped."), "stopped"),
    ],
    ids=repr,
)
def test_how_a_run_ended_is_written_down(error: BaseException, state: str, book: RunBook) -> None:
    with pytest.raises(type(error)), book.following(record("gliomas-1")):
        raise error
    assert book.state(book.find("gliomas-1")) == state


def test_a_run_whose_process_was_killed_is_not_under_way(book: RunBook) -> None:
    if (child := os.fork()) == 0:
        with book.following(record("gliomas-1")):
            os._exit(0)  # as a kill: nothing is written any more
    os.waitpid(child, 0)
    (left,) = book.records()
    assert (left.outcome, left.ended) == ("", None)
    assert book.under_way() == []
    assert book.state(left) == "interrupted: the process that followed it was killed"


def test_a_wish_to_stop_is_of_one_start_only(book: RunBook) -> None:
    run = record("gliomas-1")
    with book.following(run):
        assert not book.is_to_stop(run)
        book.ask_to_stop(run)
        assert book.is_to_stop(run)
        assert book.state(run) == "stopping"
        with pytest.raises(FederationError, match=f"process {os.getpid()} still follows it"):
            wait_until_ended(book, run, seconds=1.0, wait=lambda _: None)
    assert wait_until_ended(book, run, seconds=1.0, wait=lambda _: None).outcome == "completed"
    with book.following(run):
        assert not book.is_to_stop(run)


def test_a_run_is_found_by_its_id_the_beginning_of_it_or_its_folder(
    book: RunBook, tmp_path: Path
) -> None:
    for name in ("gliomas-1", "gliomas-12", "tumours-3"):
        with book.following(record(name, out=tmp_path / name)):
            pass
    assert book.find("gliomas-1").run == "gliomas-1"
    assert book.find("tum").run == "tumours-3"
    assert book.find(str(tmp_path / "gliomas-12")).run == "gliomas-12"
    with pytest.raises(ConfigError, match=r"more of the id of a run \(gliomas-1, gliomas-12\)"):
        book.find("gli")
    for unknown in ("meningiomas", ""):
        with pytest.raises(ConfigError, match="tumours-3"):
            book.find(unknown)
    with pytest.raises(ConfigError, match=r"a run of this server \(no run yet\), found 'gli'"):
        RunBook(tmp_path / "none").find("gli")


def test_a_damaged_record_is_named(book: RunBook, tmp_path: Path) -> None:
    with book.following(record("gliomas-1")):
        pass
    path = tmp_path / "runs" / "gliomas-1.json"
    path.write_text(json.dumps({"run": "gliomas-1"}))
    with pytest.raises(ConfigError, match=r"gliomas-1\.json: expected the record of a run"):
        book.records()
