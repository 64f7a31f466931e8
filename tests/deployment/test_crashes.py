"""What happens in hospitals and server rooms: processes are killed, stopped, doubled, or come late.

After each crash a study goes on, or resumes; every ledger still verifies, and what was charged is
never less than what was released, nor more than what the server takes it to be.
"""

from __future__ import annotations

import os
import shutil
import signal
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supernode.fleet_http_client import FleetHttpClient

from medfl.config import load_study
from medfl.protocol.keys import KEYS, NODE_KEY
from medfl.server.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SITES = ("east", "north", "south")


def every_site(study: str, point: str) -> list[str]:
    return [f"{name}-{study}-{point}" for name in SITES]


@pytest.fixture
def kill_superlink(deployment: Any, wait_for: Any) -> Any:
    """Kills the SuperLink, and waits until the server has started another one."""

    def kill() -> None:
        server = deployment.running["server"]
        old = wait_for(
            lambda: deployment.child(server, word="superlink"), seconds=30, what="a SuperLink"
        )
        old.kill()

        def replaced() -> bool:
            new = deployment.child(server, word="superlink")
            return new is not None and new.pid != old.pid

        wait_for(replaced, seconds=30, what="another SuperLink")

    return kill


def test_a_killed_superlink_is_started_again_and_the_run_goes_on(
    deployment: Any, wait_for: Any, kill_superlink: Any, require_balanced: Any
) -> None:
    study = deployment.study("superlink", rounds=4, timeout=400.0)
    out = deployment.scratch / "superlink"
    phases = {
        "the sites declare": every_site("superlink", "declare"),
        "the sites train": every_site("superlink", "1-charged"),
        "one site trains and the others have replied": ["south-superlink-2-charged"],
        "the server aggregates": ["server-3-aggregated"],
        "the server is between two rounds": ["server-3-between"],
    }
    deployment.hold(*(point for points in phases.values() for point in points))
    deployment.start("superlink", "server", "run", deployment.server.path, study, "--out", out)
    for phase, points in phases.items():
        for point in points:
            deployment.held(point)
        if "replied" in phase:
            wait_for(lambda: len(RunFolder(out).events()) == 5, seconds=60, what="two replies")
        kill_superlink()
        deployment.release(*points)
    code = deployment.finished("superlink", seconds=400)
    assert code == 0, deployment.log("superlink").read_text()[-3000:]
    assert require_balanced("superlink", out=out, rounds=4) == dict.fromkeys(SITES, (4, 4))
    assert deployment.log("server").read_text().count("ended with exit code -9") == len(phases)


def test_a_run_resumes_after_its_serverapp_its_command_and_its_server_were_killed(
    deployment: Any, wait_for: Any, require_balanced: Any
) -> None:
    study = deployment.study("server", rounds=3, timeout=400.0)
    out = deployment.scratch / "server-run"
    command = ("server", "run", deployment.server.path, study, "--out", out)

    def is_gone() -> bool:
        return deployment.child(deployment.running["server"], word="flwr-serverapp") is None

    # The ServerApp in aggregation.
    deployment.hold("server-1-aggregated")
    deployment.start("first", *command)
    os.kill(deployment.held("server-1-aggregated"), signal.SIGKILL)
    deployment.release("server-1-aggregated")
    deployment.running["first"].send_signal(signal.SIGINT)
    assert deployment.finished("first", seconds=60) != 0
    assert RunFolder(out).rounds() == []

    # In checkpointing: round 2 is recorded, and its state is not there yet.
    deployment.hold("server-2-checkpoint")
    deployment.start("second", *command, "--resume")
    os.kill(deployment.held("server-2-checkpoint"), signal.SIGKILL)
    deployment.release("server-2-checkpoint")
    deployment.running["second"].send_signal(signal.SIGTERM)
    assert deployment.finished("second", seconds=60) != 0
    assert [line.round for line in RunFolder(out).rounds()] == [1, 2]
    state = RunFolder(out).read_state(study=load_study(study))
    assert state is not None and state.round == 1

    # The command that follows it, and then the whole server, while the sites train.
    deployment.hold(*every_site("server", "3-charged"))
    deployment.start("third", *command, "--resume")
    for point in every_site("server", "3-charged"):
        deployment.held(point)
    assert not is_gone()
    deployment.running["third"].kill()
    wait_for(is_gone, seconds=30, what="the ServerApp to end")
    deployment.running["server"].kill()
    deployment.finished("server", seconds=30)
    deployment.release(*every_site("server", "3-charged"))
    deployment.start_server()

    deployment.start("fourth", *command, "--resume")
    assert deployment.finished("fourth", seconds=400) == 0, deployment.log("fourth").read_text()
    # What a site had computed it sent again, free of charge.
    assert require_balanced("server", out=out, rounds=3) == dict.fromkeys(SITES, (3, 3))


def test_a_straggler_trains_no_stale_round_and_the_others_do_not_wait(
    deployment: Any, wait_for: Any, require_balanced: Any
) -> None:
    study = deployment.study("straggler", rounds=3, timeout=30.0, min_sites=2)
    out = deployment.scratch / "straggler"
    before, after = "east-straggler-1-read", "south-straggler-2-charged"
    deployment.hold(before, after)
    deployment.start("straggler", "server", "run", deployment.server.path, study, "--out", out)

    def outcomes(number: int) -> dict[str, str]:
        lines = {line.round: line for line in RunFolder(out).rounds()}
        if number not in lines:
            return {}
        return {name: site.outcome for name, site in lines[number].sites.items()}

    # One is stopped before its charge, and goes on when its time is over.
    deployment.held(before)
    os.killpg(deployment.running["east"].pid, signal.SIGSTOP)
    found = wait_for(lambda: outcomes(1), seconds=120, what="round 1")
    deployment.release(before)
    os.killpg(deployment.running["east"].pid, signal.SIGCONT)
    assert found == {"east": "silent", "north": "admitted", "south": "admitted"}

    # Another one is late after its charge.
    deployment.held(after)
    found = wait_for(lambda: outcomes(2), seconds=120, what="round 2")
    deployment.release(after)
    assert found == {"east": "admitted", "north": "admitted", "south": "silent"}

    assert deployment.finished("straggler", seconds=120) == 0
    assert set(outcomes(3).values()) == {"admitted"}
    charged = require_balanced("straggler", out=out, rounds=3)
    assert charged == {"east": (2, 2), "north": (3, 3), "south": (3, 3)}


def test_a_run_resumes_after_a_clientapp_a_node_and_a_whole_site_were_killed_in_one_round(
    deployment: Any, require_balanced: Any
) -> None:
    study = deployment.study("killed", rounds=2, timeout=60.0)
    out = deployment.scratch / "killed"
    command = ("server", "run", deployment.server.path, study, "--out", out)
    app, node, whole = "south-killed-1-charged", "north-killed-1-stored", "east-killed-1-charged"
    deployment.hold(app, node, whole)
    deployment.start("killed", *command)
    # In training, between charge and first step.
    os.kill(deployment.held(app), signal.SIGKILL)
    deployment.held(whole)
    os.killpg(deployment.running["east"].pid, signal.SIGKILL)
    assert deployment.finished("east", seconds=60) == -signal.SIGKILL
    # Between the charge and the reply. The rest of the site ends with its node, for the service
    # manager to start it anew.
    deployment.held(node)
    supernode = deployment.child(deployment.running["north"], word="supernode")
    assert supernode is not None
    supernode.kill()
    assert deployment.finished("north", seconds=60) != 0
    assert [deployment.run_of(name, study="killed").charges for name in SITES] == [1, 1, 1]
    deployment.restart_site("north")
    deployment.restart_site("east")
    assert deployment.finished("killed", seconds=120) == 1
    said = deployment.log("killed").read_text()
    assert "Round 1: expected at least 3 usable updates" in said

    deployment.start("resumed", *command, "--resume")
    assert deployment.finished("resumed", seconds=400) == 0, deployment.log("resumed").read_text()
    # What was stored is sent free of charge; who was killed before pays again.
    charged = require_balanced("killed", out=out, rounds=2)
    assert charged == {"east": (3, 2), "north": (2, 2), "south": (3, 2)}


def test_a_second_site_with_the_same_key_is_refused_while_the_first_is_there(
    deployment: Any, tmp_path: Path
) -> None:
    first = deployment.sites["north"]
    state = shutil.copytree(deployment.site("north").state, tmp_path / "state")
    second = tmp_path / "north.toml"
    second.write_text(first.read_text().replace(str(deployment.site("north").state), str(state)))
    for name, file, reason in (
        ("copied", second, "Failed to activate SuperNode"),
        ("doubled", first, "that no other process works on"),
    ):
        arguments = (
            "--server",
            deployment.server.local_address,
            "--ca",
            deployment.server.authority,
        )
        deployment.start(name, "site", "start", file, *arguments)
        assert deployment.finished(name, seconds=120) != 0
        assert reason in deployment.log(name).read_text()
    assert deployment.running["north"].poll() is None
    assert deployment.online() == set(SITES)


class Signed:
    """Signs a time with a node's key, as Flower does, but any time."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, *, age_seconds: float) -> None:
        self._key = key
        self._age = timedelta(seconds=age_seconds)

    def intercept(self, context: Any, call_next: Any) -> Any:
        time = (now() - self._age).isoformat()
        public = b64encode(public_key_to_bytes(self._key.public_key())).decode()
        signature = b64encode(sign_message(self._key, time.encode())).decode()
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = public
        context.request.headers[TIMESTAMP_HEADER] = time
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = signature
        return call_next(context)


def test_a_replayed_registration_or_activation_is_refused(deployment: Any) -> None:
    path = deployment.site("north").state / KEYS / NODE_KEY
    admitted = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(admitted, ec.EllipticCurvePrivateKey)
    stranger = ec.generate_private_key(ec.SECP384R1())

    def status(kind: str, *, key: ec.EllipticCurvePrivateKey, age: float) -> int:
        public = public_key_to_bytes(key.public_key())
        with FleetHttpClient.from_server_address(
            deployment.server.local_address,
            insecure=False,
            root_certificates=deployment.server.authority.read_bytes(),
            interceptors=[Signed(key, age_seconds=age)],
        ) as client:
            try:
                if kind == "register":
                    client.RegisterNode(RegisterNodeFleetRequest(public_key=public))
                else:
                    request = ActivateNodeRequest(public_key=public, heartbeat_interval=30)
                    client.ActivateNode(request)
            except httpx.HTTPStatusError as error:
                return error.response.status_code
            return 200

    unauthorised, refused = 401, 412
    for kind in ("register", "activate"):
        # The signature is too old, from a clock that is ahead, or nobody's.
        assert status(kind, key=admitted, age=400.0) == unauthorised
        assert status(kind, key=admitted, age=-30.0) == unauthorised
        assert status(kind, key=stranger, age=0.0) in (unauthorised, refused)
        # Caught and sent again at once, while the site itself is there.
        assert status(kind, key=admitted, age=0.0) == refused
    assert deployment.running["north"].poll() is None
    assert deployment.online() == set(SITES)


def test_sites_that_were_started_before_the_server_waited_for_it(deployment: Any) -> None:
    for name in SITES:
        log = (deployment.site(name).state / "logs" / "site.log").read_text()
        assert "Connection attempt failed, retrying" in log
