"""Places to work at: order, threads, failures, deaths, and nobody left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from medfl.errors import DataError, FederationError
from medfl.study.workers import Workers, answers, one_thread

ENDS_WITHIN = 30.0
Work = Callable[[Any], Any]


class Foreign(Exception):
    """An exception that cannot be made from what a pickle keeps of it."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def counting(tell: Callable[[Any], None], *, first: int) -> Work:
    """Says what it is asked, and knows how often it was."""
    asked = first - 1

    def work(question: str) -> tuple[str, int, int, int]:
        nonlocal asked
        asked += 1
        tell(question)
        return question, asked, os.getpid(), torch.get_num_threads()

    return work


def failing(tell: Callable[[Any], None]) -> Work:
    def work(how: str) -> str:
        match how:
            case "mistake":
                raise DataError("Expected something, found something else.", code="data-else")
            case "bug":
                raise ZeroDivisionError("nought")
            case "foreign":
                raise Foreign("some", "thing")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "logs":
                logging.getLogger("medfl.somewhere").warning("told %s", "you")
                logging.getLogger("medfl.somewhere").debug("nobody asked")
        return how

    return work


def unmade(tell: Callable[[Any], None]) -> Work:
    raise DataError("Expected something to begin with.")


def endless(tell: Callable[[Any], None]) -> Work:
    def work(folder: Path) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(600)

    return work


def noting(tell: Callable[[Any], None]) -> Work:
    """Leaves a file for each question; one called `slow` waits for a file called `go`."""

    def work(file: Path) -> str:
        file.touch()
        while file.name == "slow" and not (file.parent / "go").exists():
            time.sleep(0.02)
        return file.name

    return work


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "medfl.study.worker" in p.cmdline()]


def unheard(event: object) -> None:
    raise AssertionError(event)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(folder: Path) -> list[int]:
    return [int(file.name) for file in folder.iterdir() if psutil.pid_exists(int(file.name))]


@pytest.mark.parametrize("jobs", [0, -1])
def test_fewer_than_one_job_is_refused(jobs: int) -> None:
    with pytest.raises(ValueError, match=f"jobs >= 1, found {jobs}"):
        Workers(jobs)


def test_one_job_is_this_process_with_one_thread_and_no_other() -> None:
    heard: list[str] = []
    torch.set_num_threads(2)
    with (
        Workers(1) as workers,
        workers.bench(partial(counting, first=5), hear=heard.append) as bench,
    ):
        numbers = [bench.ask(name, place=0) for name in "ab"]
        assert heard == []  # nothing is done before it is wanted
        found = [bench.answer(number) for number in numbers]
        assert children() == []
        with pytest.raises(ValueError, match="place 0, found 1"):
            bench.ask("c", place=1)
    assert found == [("a", 5, os.getpid(), 1), ("b", 6, os.getpid(), 1)]
    assert heard == ["a", "b"]
    assert torch.get_num_threads() == 2


def test_one_thread_is_given_back_after_a_failure() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_each_place_is_a_process_of_one_thread_that_keeps_its_work() -> None:
    heard: list[str] = []
    with Workers(2) as workers:
        with workers.bench(partial(counting, first=0), hear=heard.append) as bench:
            found = answers(bench, list("abcde"), places=[0, 1, 1, 0, 1])
            first = {child.pid for child in children()}
        with workers.bench(partial(counting, first=7), hear=heard.append) as bench:
            (again,) = answers(bench, ["f"], places=[1])
            assert {child.pid for child in children()} == first  # begun once
    questions, counts, processes, threads = zip(*found, strict=True)
    assert questions == tuple("abcde")
    assert counts == (0, 0, 1, 1, 2)
    assert set(processes) == first
    assert [processes.index(process) for process in processes] == [0, 1, 1, 0, 1]
    assert set(threads) == {1}
    assert again[:3] == ("f", 7, processes[1])
    assert sorted(heard) == list("abcdef")
    assert children() == []


@pytest.mark.slow
def test_a_failure_arrives_as_it_was_raised(caplog: pytest.LogCaptureFixture) -> None:
    with Workers(2) as workers:
        for how, kind, text in (
            ("mistake", DataError, "^Expected something, found something else.$"),
            ("bug", ZeroDivisionError, "^nought"),
            ("foreign", RuntimeError, "^Foreign: something$"),
        ):
            with (
                pytest.raises(kind, match=text) as raised,
                workers.bench(failing, hear=unheard) as bench,
            ):
                answers(bench, ["fine", how], places=[0, 1])
            assert children() == []  # nobody waits for what the others do
            if how == "mistake":
                assert raised.value.code == "data-else"
                assert not hasattr(raised.value, "__notes__")
            if how == "bug":
                assert "test_workers.py" in raised.value.__notes__[0]
        with (
            pytest.raises(DataError, match="to begin with"),
            workers.bench(unmade, hear=unheard) as bench,
        ):
            answers(bench, ["anything"], places=[1])
        with workers.bench(failing, hear=unheard) as bench:
            answers(bench, ["logs"], places=[1])
    records = [(r.name, r.levelname, r.getMessage()) for r in caplog.records]
    assert records == [("medfl.somewhere", "WARNING", "told you")]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "end"), [("killed", "signal SIGKILL"), ("exits", "exit code 3")])
def test_a_worker_that_dies_is_said_to_have_died(how: str, end: str) -> None:
    begin = time.monotonic()
    with Workers(2) as workers:
        with (
            pytest.raises(FederationError, match=f"ended by {end}.*--resume") as raised,
            workers.bench(failing, hear=unheard) as bench,
        ):
            answers(bench, ["fine", how, "fine", "fine"], places=[0, 1, 0, 1])
        assert raised.value.code == "worker"
        assert children() == []
    assert time.monotonic() - begin < ENDS_WITHIN


@pytest.mark.slow
def test_an_idle_worker_that_dies_is_noticed_when_it_is_needed() -> None:
    with (
        Workers(2) as workers,
        pytest.raises(FederationError, match="SIGKILL"),
        workers.bench(failing, hear=unheard) as bench,
    ):
        answers(bench, ["fine", "fine"], places=[0, 1])
        for child in children():
            child.kill()
            child.wait()
        answers(bench, ["fine", "fine"], places=[0, 1])


@pytest.mark.slow
def test_who_is_faster_waits_before_the_memory_is_full_of_answers(tmp_path: Path) -> None:
    names = ["slow", *(f"{number:02}" for number in range(20))]
    with Workers(2) as workers, workers.bench(noting, hear=unheard) as bench:
        numbers = [
            bench.ask(tmp_path / name, place=int(place > 0)) for place, name in enumerate(names)
        ]
        found: list[str] = []
        taker = threading.Thread(target=lambda: found.append(bench.answer(numbers[0])))
        taker.start()
        within(20.0, lambda: (tmp_path / "06").exists())
        time.sleep(1.0)
        assert not (tmp_path / "07").exists()  # seven wait, and the slow one works
        (tmp_path / "go").touch()
        taker.join()
        found += [bench.answer(number) for number in reversed(numbers[1:])]
    assert found == ["slow", *sorted(names[1:], reverse=True)]


@pytest.mark.slow
def test_work_that_nobody_waits_for_is_ended(tmp_path: Path) -> None:
    with Workers(2) as workers:
        with (
            pytest.raises(RuntimeError, match="found 1 open"),
            workers.bench(endless, hear=unheard) as bench,
        ):
            bench.ask(tmp_path, place=1)
            assert within(ENDS_WITHIN, lambda: len(alive(tmp_path)) == 1)
        assert alive(tmp_path) == []
        with (
            pytest.raises(KeyboardInterrupt),
            workers.bench(endless, hear=unheard) as bench,
        ):
            for place in (0, 1):
                bench.ask(tmp_path, place=place)
            assert within(ENDS_WITHIN, lambda: len(alive(tmp_path)) == 2)
            raise KeyboardInterrupt
        assert alive(tmp_path) == []


def _listen_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


SCRIPT = """
import sys
from pathlib import Path
from tests.study.test_workers import endless, unheard
from medfl.study.workers import Workers
print("begun", flush=True)  # and no `if __name__ == "__main__"`
with Workers(2) as workers, workers.bench(endless, hear=unheard) as bench:
    numbers = [bench.ask(Path(sys.argv[1]), place=place) for place in (0, 1)]
    bench.answer(numbers[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_workers_end_with_whoever_began_them_however_that_ends(tmp_path: Path, end: str) -> None:
    script, marks = tmp_path / "script.py", tmp_path / "marks"
    script.write_text(SCRIPT)
    marks.mkdir()
    child = subprocess.Popen(
        [sys.executable, script, marks],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background may have told them to ignore Ctrl-C.
        preexec_fn=_listen_to_ctrl_c,
    )
    try:
        assert within(60.0, lambda: len(alive(marks)) == 2)
        child.send_signal(signal.Signals[end])
        said, _ = child.communicate(timeout=ENDS_WITHIN)
    finally:
        child.kill()
    assert said.count("begun") == 1
    assert within(ENDS_WITHIN, lambda: alive(marks) == [])
