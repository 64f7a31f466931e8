"""`Stage`: the folder and the processes of a rehearsal, none of which outlives it.

Every process begins a session of its own: Ctrl-C in a terminal then reaches the rehearsal alone,
which ends the others in order, and at last ends for certain whatever is left of their groups.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from medfl.deployment.addresses import LOOPBACK, is_free
from medfl.errors import ConfigError, FederationError, Interrupted
from medfl.privacy.ledger.witness_place import SYSTEM_FOLDER

POLL_SECONDS = 0.2
# A site ends two processes of its own, each of which may take 15 s before it is killed.
END_SECONDS = 40.0
LAST_LINES = 8

_BASE_BYTES = 100_000_000
_HOSPITAL_BYTES = 10_000_000


class Stage:
    """Where a rehearsal happens.

    Args:
        folder: Holds everything that it writes; there, and empty.
        stopped: Set when somebody wants it to end.
    """

    def __init__(self, folder: Path, *, stopped: threading.Event) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir()
        self._stopped = stopped
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: subprocess.Popen[bytes] | None = None
        self._environment = _environment(folder)

    def log(self, name: str) -> Path:
        """Where a process in the background writes."""
        return self.logs / f"{name}.log"

    def run(
        self, *arguments: object, answer: str = "", while_running: Callable[[], None] | None = None
    ) -> str:
        """Run a medfl command to its end.

        Args:
            arguments: What follows ``medfl``.
            answer: What somebody would type when asked.
            while_running: Called now and then.

        Returns:
            What it printed.

        Raises:
            FederationError: If it failed, or a process in the background has ended.
            Interrupted: If somebody stops the rehearsal.
        """
        words = [str(argument) for argument in arguments]
        with (
            tempfile.TemporaryFile(dir=self.folder) as printed,
            self.log("commands").open("ab") as log,
        ):
            log.write(f"$ medfl {shlex.join(words)}\n".encode())
            log.flush()
            begin = log.tell()
            process = self._start(words, stdin=subprocess.PIPE, stdout=printed, stderr=log)
            self._commands = process
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(answer.encode())
            while process.poll() is None:
                self.look()
                if while_running is not None:
                    while_running()
                self._stopped.wait(POLL_SECONDS)
            self._commands = None
            printed.seek(0)
            text = printed.read()
            log.write(text)
        if process.returncode != 0:
            said = self.log("commands").read_bytes()[begin:]
            raise FederationError(
                f"`medfl {shlex.join(words)}` ended with {process.returncode}. Its last lines:\n"
                f"{_last_lines(said)}"
            )
        return text.decode(errors="replace")

    def start(self, name: str, *arguments: object) -> None:
        """Start a medfl command that goes on in the background.

        Args:
            name: For its log, and for errors.
            arguments: What follows ``medfl``.
        """
        words = [str(argument) for argument in arguments]
        with self.log(name).open("ab") as log, self.log("commands").open("ab") as commands:
            commands.write(f"$ medfl {shlex.join(words)}  # goes on; see {name}.log\n".encode())
            self._running[name] = self._start(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def look(self) -> None:
        """See whether everything goes on.

        Raises:
            FederationError: If a process in the background has ended.
            Interrupted: If somebody stops the rehearsal.
        """
        if self._stopped.is_set():
            raise Interrupted("Stopped; every process of the rehearsal has ended.")
        for name, process in self._running.items():
            if process.poll() is not None:
                raise FederationError(
                    f"{name} ended with exit code {process.returncode}. The last lines of its log "
                    f"{self.log(name)}:\n"
                    f"{_last_lines(self.log(name).read_bytes())}"
                )

    def wait_until(self, condition: Callable[[], str], *, seconds: float) -> None:
        """Wait until nothing is missing any more.

        Args:
            condition: Says what is missing; empty text if nothing is.
            seconds: Longest wait.

        Raises:
            FederationError: If it is still missing then, or a process has ended.
            Interrupted: If somebody stops the rehearsal.
        """
        deadline = time.monotonic() + seconds
        while missing := condition():
            self.look()
            if time.monotonic() > deadline:
                raise FederationError(f"Expected {missing} within {seconds:g} s, found nothing.")
            self._stopped.wait(POLL_SECONDS)

    def end(self) -> None:
        """End every process: politely and together, then for certain."""
        processes = [*self._running.values(), *([self._commands] if self._commands else [])]
        for process in reversed(processes):  # the command that is under way first, the server last
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + END_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(deadline - time.monotonic(), 0.1))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()

    def _start(
        self, words: list[str], *, stdin: int, stdout: object, stderr: object
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # noqa: S603
            [sys.executable, "-m", "medfl", *words],
            env=self._environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


@contextmanager
def staged(keep: Path | None, *, hospitals: int) -> Iterator[Stage]:
    """A stage whose processes end with the block, and its folder too unless it is to be kept.

    Args:
        keep: A new or empty folder that stays; None takes one that goes.
        hospitals: How many there will be.

    Raises:
        ConfigError: If the folder is in use, the disk too small, or this machine's witness would
            remember the rehearsal permanently.
    """
    if os.path.lexists(SYSTEM_FOLDER):
        raise ConfigError(
            f"Expected a machine without {SYSTEM_FOLDER}, found one: it never forgets, "
            "and no rehearsal may choose another witness. Rehearse on another machine, or in "
            "a container."
        )
    with _signals() as stopped:
        folder = _new_folder(keep)
        try:
            _require_disk(folder, hospitals=hospitals)
            stage = Stage(folder, stopped=stopped)
            try:
                yield stage
            finally:
                stage.end()
        finally:
            if keep is None:
                shutil.rmtree(folder)


def require_port(port: int) -> None:
    """Refuse a port on which something listens.

    Raises:
        ConfigError: If something does.
    """
    if not is_free(LOOPBACK, port):
        raise ConfigError(
            f"--port: expected a free port of this machine, found {port}, which is taken or not "
            "for this account."
        )


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Also the end of the terminal, which would leave the others without anybody who ends them."""
    stopped = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        yield stopped
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _new_folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="medfl-rehearsal-"))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ConfigError(f"--keep: expected a new or empty folder, found files in {keep}.")
    keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    return keep.resolve()


def _require_disk(folder: Path, *, hospitals: int) -> None:
    needed, free = _BASE_BYTES + hospitals * _HOSPITAL_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: expected {needed / 1e9:.1f} GB of free disk for {hospitals} hospitals, "
            f"found {free / 1e9:.1f} GB. Name a folder on a larger disk by --keep or TMPDIR."
        )


def _environment(folder: Path) -> Mapping[str, str]:
    own = ",".join([*filter(None, [os.environ.get("no_proxy")]), LOOPBACK, "localhost"])
    return {
        **os.environ,
        # One core for each process: they share this machine.
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
        # The witness of an account. The real one never hears of these patients.
        "XDG_STATE_HOME": str(folder / "account"),
        "MPLCONFIGDIR": str(folder / "account"),
        "NO_PROXY": own,
        "no_proxy": own,
        "COLUMNS": "200",
    }


def _last_lines(content: bytes) -> str:
    lines = content.decode(errors="replace").splitlines()
    kept = [line for line in lines if line.strip()][-LAST_LINES:]
    return "\n".join(f"  {line}" for line in kept) or "  (nothing)"
