"""`Hook`: the program of an administrator that is told of events.

It runs without a shell, by its whole path, and only where nobody else could have exchanged it. It
gets the event as JSON on its standard input and the event's code in `VARIABLE`. Whatever becomes of
it, training goes on: a hook that fails or takes too long is logged and ended.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from medfl.config.monitoring import Monitoring
from medfl.deployment.monitoring.events import Event
from medfl.deployment.monitoring.report import VERSION
from medfl.errors import ConfigError
from medfl.json_text import to_json
from medfl.secret_files import changeable

VARIABLE = "MEDFL_EVENT"
"""Environment variable with the code of the event."""


def require_usable(hook: Sequence[str], *, where: Path) -> None:
    """Refuse a hook that cannot run, or that somebody else could exchange.

    Args:
        hook: The program and its arguments; nothing is looked at if it is empty.
        where: The file that names it.

    Raises:
        ConfigError: If the program is missing, no file, not executable, or it or a folder above it
            can be written by other accounts.
    """
    if not hook:
        return
    program, key = Path(hook[0]), f"{where}: key monitoring.hook"
    if not program.is_file():
        raise ConfigError(f"{key}: expected a program, found no such file: {program}")
    if not os.access(program, os.X_OK):
        raise ConfigError(
            f"{key}: expected a program that this account can execute, found one that it cannot: "
            f"{program}. chmod u+x {program}"
        )
    real = program.resolve()
    folders = {*program.parents, *real.parents}
    exposed = changeable([real, *sorted(path for path in folders if not _is_shared(path))])
    if exposed:
        raise ConfigError(f"{key}: {exposed[0]}")


def _is_shared(folder: Path) -> bool:
    """Whether everybody may add to a folder and nobody may exchange what another put there."""
    with suppress(OSError):
        return bool(folder.stat().st_mode & stat.S_ISVTX)
    return False


class Hook:
    """Tells one program, one event at a time.

    Args:
        settings: The program and its time.
        side: ``site`` or ``server``.
        name: Of the site, or of the federation.
    """

    def __init__(self, settings: Monitoring, *, side: str, name: str) -> None:
        self._command = list(settings.hook)
        self._seconds = settings.hook_seconds
        self._side = side
        self._name = name
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = False

    def text(self, event: Event) -> str:
        """What the program reads, JSON."""
        return to_json(
            {
                "version": VERSION,
                "event": event.code,
                "side": self._side,
                "name": self._name,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "details": dict(event.details),
            }
        )

    def tell(self, event: Event) -> str:
        """Run the program for an event, to its end.

        Returns:
            Why it failed; empty if it did not, or was ended by `close`.
        """
        try:
            process = self._start(event)
        except OSError as error:
            return f"it cannot be started ({error.strerror})"
        if process is None:
            return ""
        try:
            process.communicate(self.text(event).encode(), timeout=self._seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"it took more than {self._seconds:g} s and was ended"
        finally:
            self._running = None
        if process.returncode and not self._closed:
            return f"it ended with {process.returncode}"
        return ""

    def close(self) -> None:
        """End what is running, and run nothing more."""
        with self._lock:
            self._closed = True
            if self._running is not None:
                _kill(self._running)

    def _start(self, event: Event) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._closed:
                return None
            self._running = subprocess.Popen(  # noqa: S603
                self._command,
                cwd="/",
                env={**os.environ, VARIABLE: event.code},
                stdin=subprocess.PIPE,
                # What it writes is its own affair, and could be anything.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            return self._running


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
