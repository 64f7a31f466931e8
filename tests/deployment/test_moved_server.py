"""A server behind a router and over IPv6, as real processes: its backup, and its move."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medfl.deployment.addresses import is_free
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.flower.control import Control
from medfl.deployment.processes import free_port
from medfl.preflight.network import check_server
from medfl.protocol.keys import PUBLIC

MEDFL = Path(sys.executable).parent / "medfl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_free("::1", free_port()), reason="this machine has no IPv6"),
]


class Router:
    """Leads connections to a port of ``::1`` on to another port; it reads nothing.

    Args:
        port: Where hospitals connect.
        to: Where the server listens.
    """

    def __init__(self, port: int, *, to: int) -> None:
        self._to = to
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("::1", port), family=socket.AF_INET6)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in (self._server, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                try:
                    far = socket.create_connection(("::1", self._to))
                except OSError:  # the server is away
                    near.close()
                    continue
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := one.recv(65536):
            other.sendall(content)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


class Processes:
    """Commands of one test, all of which end with it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(MEDFL), *map(str, arguments)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def log(self, name: str) -> Path:
        return self._scratch / f"{name}.log"

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.terminate()
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path)
    try:
        yield running
    finally:
        running.end()


class Hospital:
    """A hospital that is started again whenever it ends, as a service manager does."""

    def __init__(self, processes: Processes, file: Path, *, authority: Path) -> None:
        self._processes = processes
        self._file = file
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None

    def is_at(self, server: ServerFolder) -> bool:
        if self._process is None or self._process.poll() is not None:
            self._process = self._processes.start(
                *("site", "site", "start", self._file),
                *("--server", server.address, "--ca", self._authority),
            )
        with Control(server) as control:
            return [each.connected for each in control.connections().values()] == [True]

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=120)


def medfl(*arguments: object) -> str:
    return subprocess.run(
        [str(MEDFL), *map(str, arguments)], check=True, timeout=300, capture_output=True, text=True
    ).stdout


def ended(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)


def test_a_server_over_ipv6_behind_a_router_comes_back_elsewhere(
    processes: Processes, write_hospital: Any, wait_for: Any, tmp_path: Path
) -> None:
    server = ServerFolder.create(
        tmp_path / "server", host="::1", port=free_port(), listen_port=free_port()
    )
    file = write_hospital(tmp_path, name="north", state=tmp_path / "north")
    medfl("server", "admit", server.path, tmp_path / "north" / PUBLIC, "north")
    hospital = Hospital(processes, file, authority=server.authority)

    def serving(name: str, folder: Path) -> subprocess.Popen[bytes]:
        process, log = processes.start(name, "server", "start", folder), processes.log(name)
        wait_for(lambda: "Serving" in log.read_text(), seconds=300, what=f"a server ({name})")
        return process

    router = Router(server.port, to=server.listen_port)
    try:
        running = serving("first", server.path)
        assert f"Serving [::1]:{server.port} (port" in processes.log("first").read_text()
        wait_for(lambda: hospital.is_at(server), seconds=300, what="a hospital over IPv6")
        found = check_server(server.address, ca=server.authority)
        assert [finding.severity for finding in found] == ["note"]  # the clocks

        # It runs while it is backed up, and is then lost with all that is not in the backup.
        medfl("server", "backup", server.path, "-o", tmp_path / "kept")
        ended(running)
        medfl("server", "restore", tmp_path / "kept", "--to", tmp_path / "restored")
        restored = ServerFolder(tmp_path / "restored")
        running = serving("restored", restored.path)
        # With an empty database: the hospital comes back by its key.
        wait_for(lambda: hospital.is_at(restored), seconds=300, what="a hospital that came back")
        ended(running)
        hospital.stop()
    finally:
        router.close()

    # To another name and a port of its own; the hospital has the ca.crt that it always had.
    medfl("server", "move", restored.path, "--host", "localhost", "--port", restored.listen_port)
    moved = ServerFolder(restored.path)
    assert moved.address == f"localhost:{restored.listen_port}"
    serving("moved", moved.path)
    wait_for(lambda: hospital.is_at(moved), seconds=300, what="a hospital at the new address")
