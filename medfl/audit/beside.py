"""Work in a process of its own beside other work: an attack that shares nothing with the others.

A process and not a thread, since torch's generators and the number of its threads are a process's
own, and the attacks on the engine depend on both.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")

Advance = Callable[[int, int], None]
"""Told the work done and the work in total."""

_EVERY = 10  # a pipe that nobody reads for a minute has room for so many words and not for more


class Beside(Generic[Result]):
    """Work under way.

    Args:
        words: What it says.
    """

    def __init__(self, words: Connection) -> None:
        self._words = words

    def result(self, *, advance: Advance) -> Result:
        """Wait for the end.

        Args:
            advance: Progress, as far as it was not said before.

        Returns:
            What the work returns.

        Raises:
            Exception: What the work raised.
            RuntimeError: If its process died.
        """
        while True:
            try:
                kind, value = self._words.recv()
            except EOFError:
                raise RuntimeError("Expected a result of the work beside, found none.") from None
            if kind == "advance":
                advance(*value)
            elif kind == "failed":
                raise value
            else:
                result: Result = value
                return result


@contextmanager
def beside(work: Callable[..., Result], **named: Any) -> Iterator[Beside[Result]]:
    """Begin work in another process, with one thread of torch.

    Args:
        work: A function of a module, which also takes `advance`.
        named: Its other arguments, which can be pickled.

    Yields:
        The work; what has not ended with the `with` block is ended then.
    """
    # Not a fork, which would copy locks that torch's threads hold.
    context = multiprocessing.get_context("spawn")
    words, end = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(end, work, named), daemon=True)
    process.start()
    end.close()  # so that its death is seen
    try:
        yield Beside(words)
    finally:
        process.kill()
        process.join()
        words.close()


def _run(end: Connection, work: Callable[..., object], named: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who began it ends it
    torch.set_num_threads(1)

    def advance(done: int, total: int) -> None:
        if done % _EVERY == 0 or done == total:
            end.send(("advance", (done, total)))

    try:
        value = work(**named, advance=advance)
    except Exception as error:  # noqa: BLE001  raised again where it is waited for
        end.send(("failed", error))
    else:
        end.send(("done", value))
