"""One hospital as real processes, behind a real proxy and without DNS: what it connects to, what
runs beside it, and that all of it ends together.
"""

from __future__ import annotations

import contextlib
import http.client
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

from medfl.config import load_site
from medfl.deployment.certificates import write_certificates
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.processes import free_port
from medfl.protocol.keys import KEYS, PUBLIC, SiteKeys
from medfl.site.audit_log import AuditLog
from medfl.site.state import create_ledger, hospital_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MEDFL = Path(sys.executable).parent / "medfl"
PROXIED = Path(__file__).parent / "proxied"
COORDINATOR = "coordinator.medfl.test"
FORK_SERVER = "multiprocessing.forkserver"
NODE, TASKS = "hospital.supernode", "hospital.task_processes"

SITE = """
name = "north"
purpose = "hospital"
declared_patients = 5
weight = 5.0
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
rounds = 1
local_steps = 1
optimizer = "sgd"
learning_rate = 0.5

[aggregation]
strategy = "fedadam"
server_learning_rate = 0.01
min_sites = 1
round_timeout_seconds = 200.0

[evaluation]
every = 10
pictures = 0
"""


@dataclass
class Hospital:
    """One hospital, its proxy and its coordinator; all of their processes end with the module."""

    scratch: Path
    file: Path
    server: ServerFolder
    proxy_port: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def memory(self) -> Path:
        """What holds the witness of the hospital's machine."""
        return self.scratch / "xdg-state"

    @property
    def state(self) -> Path:
        """The hospital's state folder."""
        return load_site(self.file).state

    def log(self, name: str) -> str:
        """What a process has written."""
        path = self.scratch / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def noted(self, name: str) -> list[str]:
        """Lines of a file that the test's own code writes."""
        path = self.scratch / name
        return path.read_text().splitlines() if path.exists() else []

    def start(self, name: str, *command: object, **variables: str) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            "XDG_STATE_HOME": str(self.memory),
            **variables,
        }
        with (self.scratch / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running[name] = process
        return process

    def start_site(self, name: str = "site", *, server: str = "") -> subprocess.Popen[bytes]:
        """Start the hospital behind the proxy, on a machine that cannot resolve names."""
        return self.start(
            name,
            *(MEDFL, "site", "start", self.file, "--ca", self.server.authority),
            *("--server", server or f"{COORDINATOR}:{self.server.port}"),
            PYTHONPATH=os.pathsep.join([str(PROXIED), *sys.path]),
            HTTPS_PROXY=f"http://127.0.0.1:{self.proxy_port}",
            MEDFL_TEST_NAMES=str(self.scratch / "names"),
            MEDFL_TEST_HOLDS=str(self.scratch / "holds"),
        )

    def start_run(self, study: str) -> subprocess.Popen[bytes]:
        """Start a study over the hospital."""
        path = self.scratch / f"{study}.toml"
        path.write_text(STUDY.format(id=study))
        out = self.scratch / f"run-{study}"
        return self.start(study, MEDFL, "server", "run", self.server.path, path, "--out", out)

    def spent(self, study: str) -> tuple[int, int]:
        """Charges and released updates of a study, after every total was counted again."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(self.memory))
            with hospital_state(load_site(self.file)).open_ledger() as ledger:
                ledger.recount()
                runs = [run for run in ledger.spent().by_run if run.study == study]
        return sum(run.charges for run in runs), sum(run.released for run in runs)

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


def wait_for(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    pytest.fail(f"Expected {what} within {seconds:g} s.")


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all below it."""
    this = psutil.Process(process.pid)
    return [this, *this.children(recursive=True)]


def command_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def named(processes: list[psutil.Process], word: str) -> psutil.Process | None:
    """The first process whose command has a word in it."""
    return next((process for process in processes if word in command_of(process)), None)


def waits(hospital: Hospital, process: subprocess.Popen[bytes]) -> list[psutil.Process] | None:
    """The processes of a site whose node is there and whose fork server is ready; else None."""
    running = tree(process)
    ready = named(running, NODE) and named(running, FORK_SERVER)
    return running if ready and "Connecting to" in hospital.log("alone") else None


def has_ended(process: psutil.Process) -> bool:
    # Who collects the children of a killed parent, and when, is the system's business.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def require_ended(processes: list[psutil.Process]) -> None:
    # A fork server ends when it has imported everything, which takes long on a busy machine.
    wait_for(lambda: all(map(has_ended, processes)), seconds=90, what="the end of every process")


def write_hospital(folder: Path, open_data: Path) -> Path:
    """File, keys and ledger of a hospital."""
    data = load_site(open_data).data
    state = folder / "north"
    path = folder / "north.toml"
    path.write_text(
        SITE.format(
            state=state,
            root=data.root,
            layout=data.layout,
            label_scheme=data.label_scheme,
            modalities=json.dumps(data.modalities),
        )
    )
    SiteKeys.create(state / KEYS).write_public(state / PUBLIC, folder=state / KEYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "xdg-state"))
        create_ledger(load_site(path), folder=state / "ledger").close()
    return path


@pytest.fixture(scope="module")
def hospital(
    hospital_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hospital]:
    """A hospital that is not started yet, a coordinator who is admitted to it, and a proxy."""
    scratch = tmp_path_factory.mktemp("hospital")
    (scratch / "holds").mkdir()
    server = ServerFolder.create(scratch / "server", host="127.0.0.1", port=free_port())
    # It listens on loopback only, and has a name that only the proxy knows.
    write_certificates(
        host=COORDINATOR,
        authority=server.authority,
        server=server.certificate,
        authority_key=server.path / "ca.key",
        server_key=server.certificate_key,
    )
    file = write_hospital(scratch, hospital_files["north"])
    subprocess.run(
        [str(MEDFL), "server", "admit", str(server.path), str(scratch / "north" / PUBLIC), "north"],
        check=True,
        timeout=60,
        capture_output=True,
    )
    place = Hospital(scratch=scratch, file=file, server=server, proxy_port=free_port())
    try:
        place.start(
            "proxy",
            *(sys.executable, "-m", "proxy", "--hostname", "127.0.0.1"),
            *("--port", place.proxy_port, "--plugins", "medfl_test_proxy.Resolver"),
            *("--num-acceptors", 1, "--num-workers", 1, "--data-dir", scratch / "proxy"),
            PYTHONPATH=str(PROXIED),
            MEDFL_TEST_PROXY_LOG=str(scratch / "asked"),
        )
        yield place
    finally:
        place.end()


@dataclass(frozen=True, kw_only=True)
class Held:
    """What was seen of a site in the middle of a task."""

    processes: list[str]
    threads_of_fork_server: int
    remote: set[tuple[str, int]]
    listening: set[str]
    stranger: int


def look(site: subprocess.Popen[bytes]) -> Held:
    """Look at a running site."""
    remote, listening, ports = set(), set(), set()
    connections = [found for process in tree(site) for found in process.net_connections("inet")]
    for found in connections:
        if found.status == psutil.CONN_LISTEN:
            listening.add(found.laddr.ip)
            ports.add(found.laddr.port)
    for found in connections:
        own = {found.laddr.port, *((found.raddr.port,) if found.raddr else ())}
        if found.raddr and not own & ports:
            remote.add((found.raddr.ip, found.raddr.port))
    (port,) = ports
    fork_server = named(tree(site), FORK_SERVER)
    assert fork_server is not None
    return Held(
        processes=[command_of(process) for process in tree(site)],
        threads_of_fork_server=fork_server.num_threads(),
        remote=remote,
        listening=listening,
        stranger=task_without_a_secret(port),
    )


def task_without_a_secret(port: int) -> int:
    """The status that a stranger on the machine gets who asks the node for a task."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"content-type": "application/protobuf"}
    connection.request("POST", "/v1/runtime/acquire-task", body=b"", headers=headers)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def hold(hospital: Hospital, study: str) -> Path:
    """Let the site wait in the first round of a study, after the charge; the file to take away.

    See `seeded/sitecustomize.py`.
    """
    point = hospital.scratch / "holds" / f"north-{study}-1-charged"
    point.touch()
    return point.with_name(f"{point.name}.reached")


@pytest.fixture(scope="module")
def joined(hospital: Hospital) -> subprocess.Popen[bytes]:
    """The site, which was started first and has been connected since its server came."""
    site = hospital.start_site()
    wait_for(lambda: hospital.noted("asked"), seconds=90, what="a site that tries to connect")
    wait_for(lambda: hospital.log("site"), seconds=90, what="a word of the site")
    assert "SuperNode ID" not in hospital.log("site")
    hospital.start("server", MEDFL, "server", "start", hospital.server.path)
    wait_for(lambda: "SuperNode ID" in hospital.log("site"), seconds=150, what="a connected site")
    return site


@pytest.fixture(scope="module")
def held(hospital: Hospital, joined: subprocess.Popen[bytes]) -> Held:
    """What was seen during a study, which came to its end afterwards."""
    reached = hold(hospital, "first")
    run = hospital.start_run("first")
    wait_for(reached.exists, seconds=150, what="a task")
    seen = look(joined)
    reached.unlink()
    assert run.wait(timeout=150) == 0, hospital.log("first")[-3000:]
    return seen


def test_a_site_that_came_before_its_server_waits_joins_and_trains(
    held: Held, hospital: Hospital, joined: subprocess.Popen[bytes]
) -> None:
    assert joined.poll() is None
    assert hospital.spent("first") == (1, 1)


def test_all_that_leaves_a_site_goes_through_its_proxy_to_its_server(
    held: Held, hospital: Hospital
) -> None:
    assert set(hospital.noted("asked")) == {f"CONNECT {COORDINATOR}:{hospital.server.port}"}
    assert held.remote == {("127.0.0.1", hospital.proxy_port)}


def test_a_site_behind_a_proxy_resolves_no_name(held: Held, hospital: Hospital) -> None:
    assert hospital.noted("names") == []


def test_a_site_listens_to_its_own_machine_only_and_hands_out_no_task(held: Held) -> None:
    assert held.listening == {"127.0.0.1"}
    assert held.stranger == 401


def test_a_task_is_a_fork_of_one_thread_and_shows_no_token(held: Held, hospital: Hospital) -> None:
    forks = [command for command in held.processes if FORK_SERVER in command]
    assert len(forks) == 2  # the server and its fork for the one message
    assert held.threads_of_fork_server == 1
    assert not [command for command in held.processes if "token" in command]


def test_a_paused_site_refuses_a_study_and_is_charged_nothing(
    held: Held, hospital: Hospital, joined: subprocess.Popen[bytes]
) -> None:
    command = [str(MEDFL), "site", "pause", str(hospital.file)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    run = hospital.start_run("paused")
    assert run.wait(timeout=150) == 1
    assert "site-paused" in hospital.log("paused")
    assert joined.poll() is None
    assert hospital.spent("paused") == (0, 0)
    newest = AuditLog(hospital.state).entries()[-1]
    assert (newest.kind, newest.content["code"]) == ("refusal", "site-paused")
    command = [str(MEDFL), "site", "resume", str(hospital.file)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def test_a_site_that_is_killed_in_a_task_leaves_no_process(
    held: Held, hospital: Hospital, joined: subprocess.Popen[bytes]
) -> None:
    reached = hold(hospital, "killed")
    hospital.start_run("killed")
    wait_for(reached.exists, seconds=150, what="a task")
    running = tree(joined)
    joined.kill()
    joined.wait(timeout=20)
    assert len(running) > 4
    require_ended(running)
    assert hospital.spent("killed") == (1, 0)


def test_a_site_that_loses_a_process_ends_and_says_why(hospital: Hospital) -> None:
    server = f"127.0.0.2:{free_port()}"
    site = hospital.start_site("alone", server=server)
    running = wait_for(lambda: waits(hospital, site), seconds=90, what="a waiting site")
    why = f"No connection to {server}: expected a server that takes connections, found"
    wait_for(lambda: why in hospital.log("alone"), seconds=60, what="why there is no connection")
    found = named(running, TASKS)
    assert found is not None
    found.kill()
    assert site.wait(timeout=40) == 1
    said = [line for line in hospital.log("alone").splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "the runner of ClientApps ended with exit code -9" in said[0]
    require_ended(running)


def test_a_running_site_is_alone_with_its_state_until_it_leaves_for_good(
    hospital: Hospital,
) -> None:
    """The last test of this module, since the hospital is gone after it."""
    (hospital.scratch / "alone.log").unlink(missing_ok=True)
    address = f"127.0.0.2:{free_port()}"
    site = hospital.start_site("alone", server=address)
    running = wait_for(lambda: waits(hospital, site), seconds=90, what="a waiting site")
    second = hospital.start_site("second", server=address)
    assert second.wait(timeout=60) == 1
    assert "found one that does" in hospital.log("second")
    command = [str(MEDFL), "site", "leave", str(hospital.file), "--reason", "moved", "--yes"]
    of_its_account = {**os.environ, "XDG_STATE_HOME": str(hospital.memory)}
    subprocess.run(command, check=True, timeout=120, capture_output=True, env=of_its_account)
    assert site.wait(timeout=40) == 0
    require_ended(running)
    again = hospital.start_site("again", server=address)
    assert again.wait(timeout=60) == 2
    assert "left for good" in hospital.log("again")
    assert hospital.noted("names") == []
