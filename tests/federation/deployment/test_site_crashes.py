"""What happens in hospitals: a site or a part of it is killed, stopped, doubled or comes early.

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

from medfl.federation.run_folder import RunFolder
from medfl.federation.site_keys import KEYS, NODE_KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

SITES = ("east", "north", "south")


def test_a_straggler_trains_no_stale_round_and_the_others_do_not_wait(
    deployment: Any, wait_for: Any, require_balanced: Any
) -> None:
    study = deployment.study("straggler", rounds=3, timeout=40.0, min_sites=2)
    out = deployment.scratch / "straggler"
    before, after = "east-straggler-1-read", "south-straggler-2-charged"
    deployment.hold(before, after)
    deployment.start("straggler", "server", "run", deployment.server.path, study, "--out", out)

    def outcomes(number: int) -> dict[str, str]:
        lines = {line["round"]: line for line in RunFolder(out).rounds()}
        if number not in lines:
            return {}
        return {name: site["outcome"] for name, site in lines[number]["sites"].items()}

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


def test_a_killed_clientapp_and_a_killed_node_cost_their_round_and_no_more(
    deployment: Any, wait_for: Any, require_balanced: Any
) -> None:
    study = deployment.study("killed", rounds=2, timeout=150.0, min_sites=1)
    out = deployment.scratch / "killed"
    in_training, before_reply = "south-killed-1-charged", "north-killed-1-stored"
    deployment.hold(in_training, before_reply)
    deployment.start("killed", "server", "run", deployment.server.path, study, "--out", out)
    os.kill(deployment.held(in_training), signal.SIGKILL)
    deployment.held(before_reply)
    node = deployment.child(deployment.running["north"], word="supernode")
    assert node is not None
    node.kill()
    # The rest of the site ends with it, for the service manager to start it anew.
    assert deployment.finished("north", seconds=60) != 0
    deployment.restart_site("north")

    assert deployment.finished("killed", seconds=240) == 0, deployment.log("killed").read_text()
    first, second = (line["sites"] for line in RunFolder(out).rounds())
    assert {name: site["outcome"] for name, site in first.items()} == {
        "east": "admitted",
        "north": "silent",
        "south": "refused",
    }
    assert {site["outcome"] for site in second.values()} == {"admitted"}
    charged = require_balanced("killed", out=out, rounds=2)
    assert charged == {"east": (2, 2), "north": (2, 2), "south": (2, 1)}


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
