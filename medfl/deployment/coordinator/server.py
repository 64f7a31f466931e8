"""A coordinator's server: SuperLink and SuperExec as children that begin and end together.

A child that is killed is started again at once. Sites and a ServerApp at work wait for a SuperLink
that is away and go on with the new one, since all of its state is in Flower's database; a server
that ended with its child would take the ServerApp, and so the run, with it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from medfl.deployment.addresses import is_free
from medfl.deployment.admission import AdmittedSite
from medfl.deployment.coordinator.monitoring import watched_server
from medfl.deployment.coordinator.node_registry import align_nodes
from medfl.deployment.coordinator.options import OPTIONS, ServerOptions
from medfl.deployment.coordinator.private_files import require_private
from medfl.deployment.coordinator.server_folder import FOLDER_VARIABLE, ServerFolder
from medfl.deployment.coordinator.server_logs import rotate_logs
from medfl.deployment.flower.control import Control, Unreachable
from medfl.deployment.lock import LOOK_SECONDS, exclusive, is_held
from medfl.deployment.monitoring.hook import require_usable
from medfl.deployment.monitoring.watch import monitored
from medfl.deployment.processes import (
    flower_environment,
    start,
    stop,
    stop_signals,
)
from medfl.errors import FederationError

SUPERLINK, SUPEREXEC = "superlink", "superexec"

READY_SECONDS = 120.0
POLL_SECONDS = 1.0
PORT_SECONDS = 30.0
# A child that ends as soon as this, several times in a row, will not stay: something is wrong.
SHORT_LIFE_SECONDS = 5.0
SHORT_LIVES = 3

logger = logging.getLogger(__name__)


def serve(folder: ServerFolder, *, on_ready: Callable[[], None]) -> None:
    """Serve hospitals until SIGTERM or SIGINT comes; who is admitted meanwhile may join.

    Args:
        folder: The server's files.
        on_ready: Called once, when sites can connect.

    Raises:
        ConfigError: If secrets, keys or folders are open to other accounts, or if the monitoring
            that its file asks for cannot begin.
        FederationError: If another process serves this folder or listens on its port, or if one of
            the children does not stay.
    """
    if is_held(folder.server_lock):
        raise FederationError(f"{folder.path}: this server is already running.")
    require_private(folder)
    settings = ServerOptions.read(folder.path).monitoring
    require_usable(settings.hook, where=folder.path / OPTIONS)
    with (
        exclusive(folder.server_lock, noun="a server's folder", patience_seconds=LOOK_SECONDS),
        stop_signals() as stopped,
        monitored(
            watched_server(folder, settings=settings),
            settings=settings,
            folder=folder.path,
            say=logger.warning,
        ),
        _children(folder, stopped) as children,
        Control(folder) as control,
    ):
        aligned: dict[str, AdmittedSite] | None = None
        announced = is_open = False
        heard = time.monotonic()
        while not stopped.is_set():
            if SUPERLINK in _revive(children):
                is_open = False
            sites = folder.sites()
            with suppress(Unreachable):  # the next look says whether it ended
                if sites != aligned:
                    align_nodes(sites, control)
                    aligned = sites
                if not is_open:
                    control.open_fleet()
                    is_open = True
            if is_open:
                heard = time.monotonic()
                if not announced:
                    on_ready()
                    announced = True
            elif time.monotonic() - heard > READY_SECONDS:
                raise FederationError(
                    f"The server did not answer within {READY_SECONDS:g} s; see "
                    f"{children[SUPERLINK].log}."
                )
            rotate_logs(folder.logs)
            stopped.wait(POLL_SECONDS)


class Child:
    """A process of the server that is started again when it ends.

    Args:
        name: For the log.
        command: Program and arguments.
        log: Where it writes.
        environment: All of its variables.
    """

    def __init__(
        self, name: str, command: list[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.log = log
        self._name = name
        self._command = command
        self._environment = environment
        self._short_lives = 0
        self._start()

    def revive(self) -> bool:
        """Start it again if it has ended, and say whether it had.

        Raises:
            FederationError: If it does not stay.
        """
        code = self._process.poll()
        if code is None:
            return False
        is_short = time.monotonic() - self._begin < SHORT_LIFE_SECONDS
        self._short_lives = self._short_lives + 1 if is_short else 0
        if self._short_lives == SHORT_LIVES:
            raise FederationError(f"The {self._name} ended with exit code {code}; see {self.log}.")
        logger.warning("The %s ended with exit code %d and is being restarted.", self._name, code)
        self._start()
        return True

    def stop(self) -> None:
        """End it."""
        stop(self._process)

    def _start(self) -> None:
        self._begin = time.monotonic()
        self._process = start(self._command, log=self.log, environment=self._environment)


@contextmanager
def _children(folder: ServerFolder, stopped: threading.Event) -> Iterator[dict[str, Child]]:
    _wait_for_port(folder, stopped)
    environment = flower_environment(home=folder.flower_home)
    environment[FOLDER_VARIABLE] = str(folder.path)
    children: dict[str, Child] = {}
    try:
        for name, command in _commands(folder).items():
            log = folder.logs / f"{name}.log"
            children[name] = Child(name, command, log=log, environment=environment)
        yield children
    finally:
        # The SuperExec first, so that a ServerApp can still say that it was stopped.
        for name in reversed(children):
            children[name].stop()


def _wait_for_port(folder: ServerFolder, stopped: threading.Event) -> None:
    """Let the SuperLink of an earlier server end first: it would answer for the new one."""
    deadline = time.monotonic() + PORT_SECONDS
    while not stopped.is_set() and not is_free(folder.host, folder.listen_port):
        if time.monotonic() > deadline:
            raise FederationError(
                f"Port {folder.listen_port} is in use: another process listens there."
            )
        stopped.wait(POLL_SECONDS)


def _commands(folder: ServerFolder) -> dict[str, list[str]]:
    this = str(os.getpid())
    superlink = [
        *(sys.executable, "-m", "medfl.deployment.coordinator.superlink"),
        *(str(folder.path), this),
    ]
    superexec = [
        str(Path(sys.executable).parent / "flower-superexec"),
        *("--runtime-api-address", folder.local_address),
        *("--root-certificates", str(folder.authority)),
        *("--superexec-auth-secret-file", str(folder.superexec_secret)),
        *("--parent-pid", this),
    ]
    return {SUPERLINK: superlink, SUPEREXEC: superexec}


def _revive(children: Mapping[str, Child]) -> set[str]:
    return {name for name, child in children.items() if child.revive()}
