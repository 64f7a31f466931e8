"""One worker: a process of one thread that answers one question after the other.

``python -m medfl.study.worker DESCRIPTOR``, begun by `medfl.study.workers`, with the descriptor of
its line to them. It is no child of `multiprocessing`, which would import the script that began it
once more: a script that runs a study without ``if __name__ == "__main__"`` would begin another one.

The process lives as long as its line: when the process that began it is gone, for whatever reason,
it ends at once, in the middle of whatever it does. What a site has charged is on disk by then.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

from medfl.errors import MedflError

Tell = Callable[[Any], None]
"""Says something on the way to an answer."""

Work = Callable[[Any], Any]
"""Answers a question."""

Make = Callable[[Tell], Work]
"""Makes the work. It travels as a pickle: a function of a module, or `functools.partial` of one."""

Kind = Literal["told", "logged", "answer", "failed"]
"""What a worker says."""


class _Line:
    """What this process says to the one that began it; several threads may.

    Args:
        connection: The line.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def say(self, kind: Kind, value: object) -> None:
        """Say one thing."""
        self._send(pickle.dumps((kind, value)))

    def fail(self, error: Exception) -> None:
        """Say that there is no answer."""
        if not isinstance(error, MedflError):  # nobody's mistake but ours: say where
            error.add_note(f"In a worker:\n{traceback.format_exc()}")
        self._send(_pickled_failure(error))

    def _send(self, content: bytes) -> None:
        # Not `Connection.send`, for which torch would put tensors into shared memory.
        with self._lock:
            self._connection.send_bytes(content)


class _Log(logging.handlers.QueueHandler):
    """Log records go to the log of the process that began this one."""

    def __init__(self, line: _Line) -> None:
        super().__init__(queue.SimpleQueue())
        self._line = line

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send one."""
        self._line.say("logged", record)


def main() -> None:
    """Answer until the line ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends it
    connection = Connection(int(sys.argv[1]))
    line, orders = _Line(connection), queue.SimpleQueue[bytes]()
    threading.Thread(target=_receive, args=(connection, orders), daemon=True).start()
    logging.getLogger().addHandler(_Log(line))
    import torch  # once Ctrl-C is ignored: this takes seconds

    torch.set_num_threads(1)
    work: Work = _nothing
    while True:
        try:
            kind, value = pickle.loads(orders.get())  # noqa: S301  from the process that began this one
            if kind == "make":
                level, make = value
                logging.getLogger().setLevel(level)
                work = make(lambda event: line.say("told", event))
            elif kind == "ask":
                line.say("answer", work(value))
            else:
                work = _nothing
                gc.collect()  # networks and patients that the work held
        except Exception as error:  # noqa: BLE001  raised again where it was asked for
            line.fail(error)


def _nothing(question: object) -> None:
    """Stands where no work was made."""
    raise RuntimeError(f"Expected work to be made first, found {type(question).__name__} asked.")


def _receive(connection: Connection, orders: queue.SimpleQueue[bytes]) -> None:
    """Take orders while this process works, and end it with its line."""
    while True:
        try:
            orders.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)


def _pickled_failure(error: Exception) -> bytes:
    """An exception; one that does not survive the way is replaced by its text."""
    try:
        content = pickle.dumps(("failed", error))
        pickle.loads(content)  # noqa: S301  our own
    except Exception:  # noqa: BLE001  whatever a foreign exception does when it is copied
        replaced = RuntimeError(f"{type(error).__name__}: {error}")
        content = pickle.dumps(("failed", replaced))
    return content


if __name__ == "__main__":
    main()
