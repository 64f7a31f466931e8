"""How a command that is told to end does so: with a message, and after releasing what it holds."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

STOPPED = 130
"""Exit code after Ctrl-C, or after a run was stopped on purpose."""

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

STOP_CODES = frozenset({STOPPED, *(128 + number for number in _SIGNALS)})


def end_on_signals() -> None:
    """Let SIGTERM, and the end of a terminal, end this process as Ctrl-C does.

    A signal that is already ignored, as under `nohup`, stays ignored.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # what is let go now is let go once
    raise SystemExit(128 + number)
