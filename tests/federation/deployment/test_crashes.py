"""What happens in hospitals and server rooms: processes are killed, stopped, or come late.

After each crash a study goes on, or resumes; every ledger still verifies, and what was charged is
never less than what was released, nor more than what the server takes it to be.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from medfl.config import load_study
from medfl.federation.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

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
    study = deployment.study("superlink", rounds=4, timeout=150.0)
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
    code = deployment.finished("superlink", seconds=150)
    assert code == 0, deployment.log("superlink").read_text()[-3000:]
    assert require_balanced("superlink", out=out, rounds=4) == dict.fromkeys(SITES, (4, 4))
    assert deployment.log("server").read_text().count("ended with -9") == len(phases)


def test_a_run_resumes_after_its_serverapp_its_command_and_its_server_were_killed(
    deployment: Any, wait_for: Any, require_balanced: Any
) -> None:
    study = deployment.study("server", rounds=3, timeout=150.0)
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
    assert [line["round"] for line in RunFolder(out).rounds()] == [1, 2]
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
    assert deployment.finished("fourth", seconds=150) == 0, deployment.log("fourth").read_text()
    # What a site had computed it sent again, free of charge.
    assert require_balanced("server", out=out, rounds=3) == dict.fromkeys(SITES, (3, 3))
