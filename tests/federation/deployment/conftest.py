"""A server and three hospitals as real processes on this machine, over TLS, with their own keys."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig, load_site
from medfl.federation.deployment.control import Control
from medfl.federation.deployment.processes import free_port
from medfl.federation.deployment.server_folder import ServerFolder
from medfl.federation.site_keys import KEYS, PUBLIC, SiteKeys
from medfl.federation.workplace import create_ledger

MEDFL = Path(sys.executable).parent / "medfl"
SEEDED = Path(__file__).parent / "seeded"
FATAL = "killed/south/2"
PATIENTS = {"east": 4, "north": 5, "south": 4}

SITE = """
name = "{name}"
purpose = "hospital"
declared_patients = {patients}
weight = {patients}.0
state = "{state}"
witness = "{witness}"
threads = 1

[data]
root = "{root}"
layout = "{layout}"
label_scheme = "{label_scheme}"
modalities = {modalities}

[privacy]
epsilon = 40.0
delta = 1e-5
min_noise_multiplier = 0.1
"""


def run_medfl(*arguments: object) -> None:
    """Run a medfl command to its end."""
    subprocess.run([str(MEDFL), *map(str, arguments)], check=True, timeout=60, capture_output=True)


def wait_for(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.3)
    pytest.fail(f"Expected {what} within {seconds:g} s.")


@dataclass
class Deployment:
    """Processes of one test module, all of which end with it."""

    scratch: Path
    server: ServerFolder
    sites: dict[str, Path]
    command: str = str(MEDFL)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.scratch / f"{name}.log"

    def start(self, name: str, *arguments: object, **variables: str) -> None:
        """Start a medfl command in a process group of its own."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            **variables,
        }
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                [self.command, *map(str, arguments)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_site(self, name: str, **variables: str) -> None:
        """Start a hospital whose noise is seeded."""
        self.start(
            name,
            *("site", "start", self.sites[name], "--server", self.server.local_address),
            *("--ca", self.server.authority),
            PYTHONPATH=str(SEEDED),
            **variables,
        )

    def restart_site(self, name: str) -> None:
        """Start a killed hospital until it is back, as systemd would.

        For a minute after a kill the server takes the old node to be there, and the new one ends.
        """

        def is_back() -> bool:
            if self.running[name].poll() is not None:
                self.start_site(name)
            return name in self.online() and self.running[name].poll() is None

        # Flower may show the killed node as connected for that minute.
        wait_for(lambda: name not in self.online(), seconds=90, what=f"{name} to be missed")
        wait_for(is_back, seconds=90, what=f"{name} to be back")

    def finished(self, name: str, *, seconds: float) -> int:
        """Wait for the end of a process and return its exit code."""
        return self.running[name].wait(timeout=seconds)

    def site(self, name: str) -> SiteConfig:
        """A hospital's file."""
        return load_site(self.sites[name])

    def online(self) -> set[str]:
        """Names of the sites whose nodes are connected."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with Control(self.server) as control:
            listed = control._client.ListNodes(ListNodesRequest()).nodes_info
        return {node.name for node in listed if node.status == "online"}

    def end(self) -> None:
        """End everything, first politely."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)


def hospital_file(
    folder: Path, *, name: str, open_data: SiteConfig, state: Path, key: bytes
) -> Path:
    """Write the file, keys and ledger of a hospital with the patients of a site with open data."""
    path = folder / f"{name}.toml"
    path.write_text(
        SITE.format(
            name=name,
            patients=PATIENTS[name],
            state=state,
            witness=folder / f"{name}-witness",
            root=open_data.data.root,
            layout=open_data.data.layout,
            label_scheme=open_data.data.label_scheme,
            modalities=json.dumps(open_data.data.modalities),
        )
    )
    keys = SiteKeys.create(state / KEYS)
    keys.write_public(state / PUBLIC, folder=state / KEYS)
    # The order of the patients follows from this key.
    (state / "site.key").write_bytes(key)
    (state / "site.key").chmod(0o600)
    create_ledger(load_site(path), folder=state / "ledger").close()
    return path


@pytest.fixture(name="wait_for")
def wait_for_fixture() -> Any:
    """The function, which a test file cannot import from here."""
    return wait_for


@pytest.fixture
def write_hospital(hospital_files: dict[str, Path]) -> Any:
    """Writes the file, keys and ledger of a hospital with the patients of one in the deployment."""

    def write(folder: Path, *, name: str, state: Path) -> Path:
        return hospital_file(
            folder,
            name=name,
            open_data=load_site(hospital_files[name]),
            state=state,
            key=name.encode() * 8,
        )

    return write


@pytest.fixture(scope="module")
def deployment(
    hospital_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A server with three connected hospitals."""
    scratch = tmp_path_factory.mktemp("deployment")
    place = scratch / "server"
    run_medfl("server", "init", place, "--host", "127.0.0.1", "--port", free_port())
    server = ServerFolder(place)
    sites = {}
    for name in PATIENTS:
        state = scratch / "state" / name
        sites[name] = hospital_file(
            scratch,
            name=name,
            open_data=load_site(hospital_files[name]),
            state=state,
            key=name.encode() * 8,
        )
        run_medfl("server", "admit", place, state / PUBLIC, name)
    running = Deployment(scratch=scratch, server=server, sites=sites)
    try:
        running.start("server", "server", "start", server.path)
        for name in sites:
            running.start_site(name, MEDFL_TEST_FATAL=FATAL)
        wait_for(
            lambda: "Serving" in running.log("server").read_text(), seconds=90, what="a server"
        )
        wait_for(lambda: running.online() == set(PATIENTS), seconds=60, what="three sites")
        yield running
    finally:
        running.end()
