"""Where the sites of a simulation work: in this process, or side by side in a few others.

Each worker is a process of one thread (`medfl.study.worker`), begun once and used for everything
that a run does at its sites. What comes out is the same, bit for bit, however many there are: a sum
over several threads is rounded in another order, so the work of this process has one thread, too.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from medfl.errors import FederationError
from medfl.study.worker import Make, Tell, Work

# Answers that wait, a worker, until somebody takes them: a worker that is faster than the others
# must not fill the memory with updates.
_AHEAD = 4


class Bench(Protocol):
    """Work that was made at each place, for questions of one kind."""

    def ask(self, question: Any, *, place: int) -> int:
        """Put a question to a place, which answers one after the other.

        Args:
            question: What is asked; a pickle unless there is one place only.
            place: From 0 on.

        Returns:
            The number under which the answer is fetched, once.
        """

    def answer(self, number: int) -> Any:
        """Wait for an answer.

        Raises:
            FederationError: If a worker died.
            Exception: What the work raised, at whichever place.
        """


class Workers:
    """Places to work at, until the end of a `with` block.

    Args:
        jobs: How many work side by side; 1 is this process and no other.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise ValueError(f"Expected jobs >= 1, found {jobs}.")
        self.jobs = jobs
        self._processes: list[_Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they do."""
        for process in self._processes:
            process.end()
        self._processes.clear()

    @contextmanager
    def bench(self, make: Make, *, hear: Tell) -> Iterator[Bench]:
        """Make the same work at every place; it ends with the `with` block, with all that it holds.

        Args:
            make: Makes the work at a place.
            hear: Told what the work says, by the thread that waits for an answer.

        Yields:
            The places.
        """
        if self.jobs == 1:
            with one_thread():
                yield _Here(make(hear))
            return
        if not self._processes:
            self._processes = [_Process() for _ in range(self.jobs)]
        try:
            order = pickle.dumps(("make", (logging.getLogger().level, make)))
            for process in self._processes:
                process.order(order)
            bench = _Beside(self._processes, hear=hear)
            yield bench
            bench.leave()
        except BaseException:
            # Some may be in the middle of what nobody waits for any more.
            self.close()
            raise


def answers(bench: Bench, questions: Sequence[Any], *, places: Sequence[int]) -> list[Any]:
    """Put all questions, and wait for all answers.

    Args:
        bench: Who answers.
        questions: The questions.
        places: Where each is answered.

    Returns:
        The answers, in the order of the questions.

    Raises:
        FederationError: If a worker died.
        Exception: What the work raised.
    """
    numbers = [
        bench.ask(question, place=place) for question, place in zip(questions, places, strict=True)
    ]
    return [bench.answer(number) for number in numbers]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within a `with` block torch has one thread in this process, as it has in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Here:
    """The only place is this process, which works when an answer is wanted."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._questions: dict[int, Any] = {}
        self._numbers = itertools.count()

    def ask(self, question: Any, *, place: int) -> int:
        if place != 0:
            raise ValueError(f"Expected place 0, found {place}.")
        number = next(self._numbers)
        self._questions[number] = question
        return number

    def answer(self, number: int) -> Any:
        return self._work(self._questions.pop(number))


class _Beside:
    """Every place is a process; each has one question at a time."""

    def __init__(self, processes: Sequence[_Process], *, hear: Tell) -> None:
        self._hear = hear
        self._processes = tuple(processes)
        self._waiting: list[deque[tuple[int, Any]]] = [deque() for _ in processes]
        self._busy: dict[int, int] = {}  # the number that a place works on
        self._places: dict[int, int] = {}  # of what is not answered
        self._answers: dict[int, Any] = {}
        self._numbers = itertools.count()

    def ask(self, question: Any, *, place: int) -> int:
        number = next(self._numbers)
        self._waiting[place].append((number, question))
        self._places[number] = place
        self._go_on()
        return number

    def answer(self, number: int) -> Any:
        while number in self._places:
            self._go_on(wanted=self._places[number])
            self._listen()
        answer = self._answers.pop(number)
        self._go_on()
        return answer

    def leave(self) -> None:
        """Let the places forget the work.

        Raises:
            RuntimeError: If questions were left without an answer.
        """
        if self._places:
            raise RuntimeError(f"Expected every answer fetched, found {len(self._places)} open.")
        for process in self._processes:
            process.order(pickle.dumps(("leave", None)))

    def _go_on(self, *, wanted: int | None = None) -> None:
        """Give idle places their next question; the wanted one works whatever waits."""
        for place, process in enumerate(self._processes):
            room = len(self._answers) + len(self._busy) < _AHEAD * len(self._processes)
            if self._waiting[place] and place not in self._busy and (room or place == wanted):
                number, question = self._waiting[place].popleft()
                process.order(pickle.dumps(("ask", question)))
                self._busy[place] = number

    def _listen(self) -> None:
        """Wait until a place says something."""
        by_line: dict[object, int] = {
            process.line: place for place, process in enumerate(self._processes)
        }
        for line in wait([process.line for process in self._processes]):
            place = by_line[line]
            kind, value = self._processes[place].heard()
            if kind == "told":
                self._hear(value)
            elif kind == "logged":
                _log(value)
            elif kind == "failed":
                raise value
            else:
                number = self._busy.pop(place)
                del self._places[number]
                self._answers[number] = value


class _Process:
    """A worker.

    Attributes:
        line: To it and from it; when it ends, so does the worker.
    """

    def __init__(self) -> None:
        self.line, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                # -P: what lies in the folder in which somebody works is no module of ours.
                [sys.executable, "-P", "-m", "medfl.study.worker", str(theirs.fileno())],
                env=_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def order(self, content: bytes) -> None:
        """Send an order.

        Raises:
            FederationError: If the process died.
        """
        try:
            self.line.send_bytes(content)
        except OSError:
            raise self._died() from None

    def heard(self) -> tuple[str, Any]:
        """Wait for what it says next.

        Raises:
            FederationError: If the process died.
        """
        try:
            said: tuple[str, Any] = pickle.loads(self.line.recv_bytes())  # noqa: S301  our own
        except (EOFError, OSError):
            raise self._died() from None
        return said

    def end(self) -> None:
        """End the process; nothing is lost, since whatever it has answered was taken."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self.line.close()

    def _died(self) -> FederationError:
        code = self._process.wait()
        end = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return FederationError(
            f"A worker was ended by {end} before the run was over. "
            "A machine that runs out of memory ends processes by SIGKILL; fewer of them (--jobs) "
            "need less. What was done stays in the run folder, and the run goes on with --resume.",
            code="worker",
        )


def _environment() -> dict[str, str]:
    """Of a worker: one thread in every library, and the modules that this process finds."""
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),  # noqa: PTH109
    }


def _log(record: logging.LogRecord) -> None:
    """Write what a worker logged to this process's log."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
