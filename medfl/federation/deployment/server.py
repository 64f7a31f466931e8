"""A coordinator's server: SuperLink and SuperExec as children that begin and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medfl.errors import FederationError
from medfl.federation.deployment.control import Control, Unreachable
from medfl.federation.deployment.job import FOLDER_VARIABLE
from medfl.federation.deployment.lock import exclusive
from medfl.federation.deployment.processes import flower_environment, start, stop
from medfl.federation.deployment.server_folder import ServerFolder

READY_SECONDS = 120.0
POLL_SECONDS = 1.0


def serve(folder: ServerFolder, *, on_ready: Callable[[], None]) -> None:
    """Serve hospitals until SIGTERM or SIGINT comes; sites admitted meanwhile may join.

    Args:
        folder: The server's files.
        on_ready: Called once, when sites can connect.

    Raises:
        FederationError: If another process serves this folder, or one of the children ended.
    """
    with (
        exclusive(folder.path / "server.lock", noun="a server's folder"),
        _stop_signals() as stopped,
        _children(folder) as children,
        Control(folder) as control,
    ):
        _wait_until_ready(control, children, stopped)
        registered: set[str] = set()
        announced = False
        while not stopped.is_set():
            _require_alive(children, folder)
            with suppress(Unreachable):  # the next look says whether it ended
                _register(folder, control, registered)
                if not announced:
                    control.open_fleet()
                    on_ready()
                    announced = True
            stopped.wait(POLL_SECONDS)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    stopped = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in signals}
    try:
        yield stopped
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextmanager
def _children(folder: ServerFolder) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    environment = flower_environment(home=folder.flower_home)
    environment[FOLDER_VARIABLE] = str(folder.path)
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in _commands(folder).items():
            children[name] = start(
                command, log=folder.logs / f"{name}.log", environment=environment
            )
        yield children
    finally:
        # The SuperExec first, so that a ServerApp can still say that it was stopped.
        for name in reversed(children):
            stop(children[name])


def _commands(folder: ServerFolder) -> dict[str, list[str]]:
    this = str(os.getpid())
    superlink = [
        *(sys.executable, "-m", "medfl.federation.deployment.superlink"),
        *(str(folder.path), this),
    ]
    superexec = [
        str(Path(sys.executable).parent / "flower-superexec"),
        *("--runtime-api-address", folder.local_address),
        *("--root-certificates", str(folder.authority)),
        *("--superexec-auth-secret-file", str(folder.superexec_secret)),
        *("--parent-pid", this),
    ]
    return {"superlink": superlink, "superexec": superexec}


def _wait_until_ready(
    control: Control, children: dict[str, subprocess.Popen[bytes]], stopped: threading.Event
) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not stopped.is_set() and children["superlink"].poll() is None:
        try:
            control.nodes()
        except Unreachable:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"Expected the server to answer within {READY_SECONDS:g} s, found silence."
                ) from None
            stopped.wait(POLL_SECONDS)
        else:
            return


def _require_alive(children: dict[str, subprocess.Popen[bytes]], folder: ServerFolder) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            raise FederationError(
                f"Expected {name} to go on, found that it ended with {child.returncode}; see "
                f"{folder.logs / name}.log."
            )


def _register(folder: ServerFolder, control: Control, registered: set[str]) -> None:
    new = {name: site for name, site in folder.sites().items() if name not in registered}
    if not new:
        return
    known = control.nodes()
    for name, site in new.items():
        if site.node_key_pem not in known:
            control.register(site, name=name)
        registered.add(name)
