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

import psutil
import pytest

from medfl.config import SiteConfig, load_site
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.flower.control import Control
from medfl.deployment.processes import free_port
from medfl.protocol.keys import KEYS, PUBLIC, SiteKeys
from medfl.server.ledger import FederationLedger
from medfl.server.run_folder import RunFolder
from medfl.site.state import create_ledger, hospital_state

MEDFL = Path(sys.executable).parent / "medfl"
SEEDED = Path(__file__).parent / "seeded"
PATIENTS = {"east": 4, "north": 5, "south": 4}

SITE = """
name = "{name}"
purpose = "hospital"
declared_patients = {patients}
weight = {patients}.0
state = "{state}"
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

STUDY = """
id = "{id}"
seed = 3

[input]
modalities = ["t1c", "t2f"]
regions = ["WT", "ET"]
crop_size = [16, 16, 16]

[network]
name = "SegResNet"
arguments = {{ init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }}

[privacy]
epsilon = 8.0
sampling_prob = 0.5

[training]
rounds = {rounds}
local_steps = 1
optimizer = "sgd"
learning_rate = 0.5

[aggregation]
strategy = "fedadam"
server_learning_rate = 0.01
min_sites = {min_sites}
round_timeout_seconds = {timeout}

[evaluation]
every = 10
pictures = 0
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
    holds: Path
    command: str = str(MEDFL)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def memory(self) -> Path:
        """What holds the witness of the machine that the hospitals stand for."""
        return self.scratch / "xdg-state"

    @staticmethod
    def child(process: subprocess.Popen[bytes], *, word: str) -> psutil.Process | None:
        """The process below another one whose command line has a word in it."""
        for found in psutil.Process(process.pid).children(recursive=True):
            try:
                if any(word in argument for argument in found.cmdline()):
                    return found
            except psutil.NoSuchProcess:
                continue
        return None

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.scratch / f"{name}.log"

    def start(self, name: str, *arguments: object) -> None:
        """Start a medfl command in a process group of its own."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            # Noise is seeded, and processes can be held: see `seeded/sitecustomize.py`.
            "PYTHONPATH": os.pathsep.join([str(SEEDED), os.environ.get("PYTHONPATH", "")]),
            "MEDFL_TEST_HOLDS": str(self.holds),
            "XDG_STATE_HOME": str(self.memory),
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

    def start_server(self) -> None:
        """Start the server, until it serves."""
        log = self.log("server")
        served = log.read_text().count("Serving") if log.exists() else 0
        self.start("server", "server", "start", self.server.path)

        def serves() -> bool:
            ended = self.running["server"].poll()
            assert ended is None, log.read_text()[-3000:]
            return log.read_text().count("Serving") > served

        wait_for(serves, seconds=120, what="a server")

    def start_site(self, name: str) -> None:
        """Start a hospital."""
        self.start(
            name,
            *("site", "start", self.sites[name], "--server", self.server.local_address),
            *("--ca", self.server.authority),
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
        wait_for(lambda: name not in self.online(), seconds=120, what=f"{name} to be missed")
        wait_for(is_back, seconds=120, what=f"{name} to be back")

    def hold(self, *points: str) -> None:
        """Let the next process that reaches a point wait there; see `seeded/sitecustomize.py`."""
        for point in points:
            (self.holds / point).touch()

    def held(self, point: str, *, seconds: float = 400) -> int:
        """Wait until a process is held, and return its number."""
        file = self.holds / f"{point}.reached"
        wait_for(file.exists, seconds=seconds, what=f"a process at {point}")
        return int(file.read_text())

    def release(self, *points: str) -> None:
        """Let processes that are held go on."""
        for point in points:
            (self.holds / f"{point}.reached").unlink()

    def finished(self, name: str, *, seconds: float) -> int:
        """Wait for the end of a process and return its exit code."""
        return self.running[name].wait(timeout=seconds)

    def site(self, name: str) -> SiteConfig:
        """A hospital's file."""
        return load_site(self.sites[name])

    def study(self, name: str, *, rounds: int, timeout: float, min_sites: int = 3) -> Path:
        """Write a study."""
        path = self.scratch / f"{name}.toml"
        text = STUDY.format(id=name, rounds=rounds, timeout=timeout, min_sites=min_sites)
        path.write_text(text)
        return path

    def spent(self, name: str) -> Any:
        """A hospital's account, after every total was counted again."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(self.memory))
            with hospital_state(self.site(name)).open_ledger() as ledger:
                ledger.recount()
                return ledger.spent()

    def run_of(self, name: str, *, study: str) -> Any:
        """What a hospital was charged for the run of a study."""
        (run,) = [run for run in self.spent(name).by_run if run.study == study]
        return run

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


@pytest.fixture(name="wait_for", scope="session")
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
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(scratch / "xdg-state"))
            sites[name] = hospital_file(
                scratch,
                name=name,
                open_data=load_site(hospital_files[name]),
                state=state,
                key=name.encode() * 8,
            )
        run_medfl("server", "admit", place, state / PUBLIC, name)
    holds = scratch / "holds"
    holds.mkdir()
    running = Deployment(scratch=scratch, server=server, sites=sites, holds=holds)
    try:
        for name in sites:
            running.start_site(name)
        running.start_server()
        wait_for(lambda: running.online() == set(PATIENTS), seconds=120, what="three sites")
        yield running
    finally:
        running.end()


@pytest.fixture
def require_balanced(deployment: Any) -> Any:
    """Checks the ledgers of a finished study, and returns charges and releases by site."""

    def require(study: str, *, out: Path, rounds: int) -> dict[str, tuple[int, int]]:
        folder = RunFolder(out)
        assert [line.round for line in folder.rounds()] == list(range(1, rounds + 1))
        assert (out / "report.html").exists()
        federation = FederationLedger(folder)
        counted = {}
        for name in PATIENTS:
            run = deployment.run_of(name, study=study)
            known = sum(charge.steps for charge in federation.charges(name))
            assert run.released <= run.charges <= known
            assert run.run == folder.run_id()
            counted[name] = (run.charges, run.released)
        return counted

    return require
