"""What Flower's processes need around them: an environment, a port, a place for sockets, an end."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import util
from pathlib import Path

from medfl.errors import FederationError

STOP_SECONDS = 15.0

_LOCAL = "127.0.0.1,::1,localhost"

# Below what Linux (32768 on) and others (49152 on, RFC 6335) give to connections.
_SERVERS = range(20_000, 32_768)


# What a path of a socket may hold (unix(7): 107 on Linux, 103 elsewhere), less what multiprocessing
# puts behind the folder for temporary files.
_PLACE_BYTES = 103 - len("/pymp-12345678/listener-12345678")
_SHORT_PLACES = ("/tmp", "/var/tmp")  # noqa: S108  a folder of its own is made there, with mode 0700


def flower_environment(*, home: Path) -> dict[str, str]:
    """Variables for Flower's processes: nothing calls home, nothing is installed at run time.

    Args:
        home: Where Flower may write.
    """
    scripts = str(Path(sys.executable).parent)
    proxies = [os.environ[name] for name in ("NO_PROXY", "no_proxy") if os.environ.get(name)]
    unproxied = ",".join([*proxies, _LOCAL])
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # Flower starts its own commands by name.
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        # What the processes of one machine say to each other goes through no proxy.
        "NO_PROXY": unproxied,
        "no_proxy": unproxied,
    }


def free_port() -> int:
    """A TCP port of this machine that nobody listens on, and that no connection takes by chance.

    What the system itself would call free is also what it gives to the next connection, of whatever
    program, and a server that starts a few seconds later finds it taken.
    """
    # By chance that no seed repeats: two programs that ask at once would get the same one.
    for port in random.SystemRandom().sample(_SERVERS, len(_SERVERS)):
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
    raise FederationError(
        f"Expected a free port from {_SERVERS.start} to {_SERVERS.stop - 1}, found none."
    )


def shorten_socket_paths() -> None:
    """Let the sockets of this process' `multiprocessing` lie where their path is short enough.

    They lie in the folder for temporary files, which TMPDIR may put far down in a tree, and a
    system refuses a long path of a socket. Private names of Python's: what chooses the folder, once
    for a process.

    Raises:
        FederationError: If no folder will do.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= _PLACE_BYTES:
        return
    chosen = tempfile.tempdir
    try:
        for place in _SHORT_PLACES:
            tempfile.tempdir = place
            with suppress(OSError):
                util.get_temp_dir()
                return
    finally:
        tempfile.tempdir = chosen
    raise FederationError(
        f"Expected a folder for temporary files (TMPDIR) of at most {_PLACE_BYTES} bytes, since "
        f"sockets lie in it, or one of {', '.join(_SHORT_PLACES)} to write to, found {usual}."
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process: politely, then for certain."""
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start(
    command: list[str], *, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process that writes to a log file.

    Args:
        command: Program and arguments.
        log: Appended to.
        environment: All of its variables.
    """
    with log.open("ab") as file:
        return subprocess.Popen(  # noqa: S603
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Within a `with` block, SIGTERM and SIGINT set an event instead of ending this process."""
    stopped = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in signals}
    try:
        yield stopped
    finally:
        for number, action in before.items():
            signal.signal(number, action)
