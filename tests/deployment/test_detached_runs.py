"""A study that no terminal holds: begun, looked at, stopped and gone on with by commands.

And what a coordinator is told of missing hospitals, and of a server that is away.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from medfl.server.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

AWAY = "no answer within 30 s (not connected)"


@pytest.fixture(scope="module")
def told(deployment: Any) -> Any:
    """Runs a command of the coordinator to its end: exit code, and what it printed."""

    def run(command: str, *arguments: object) -> tuple[int, str]:
        ended = subprocess.run(
            [deployment.command, "server", command, str(deployment.server.path)]
            + [str(argument) for argument in arguments],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended.returncode, ended.stdout + ended.stderr

    return run


@pytest.fixture(scope="module")
def looked(told: Any) -> Any:
    """The run as `server status` shows it."""

    def look() -> Any:
        return json.loads(told("status", "--json")[1])

    return look


def waiting(status: Any) -> tuple[str, list[str]]:
    """What a run waits for before its rounds, and who has answered."""
    found = status["run"] and status["run"]["waiting"]
    return (found["phase"], found["answered"]) if found else ("", [])


def test_a_study_goes_on_without_a_terminal_and_is_stopped_and_resumed_by_commands(
    deployment: Any, told: Any, looked: Any, wait_for: Any
) -> None:
    deployment.running["east"].terminate()
    deployment.finished("east", seconds=60)
    wait_for(lambda: "east" not in deployment.online(), seconds=300, what="east to be away")
    study = deployment.study("detached", rounds=2, timeout=600.0, min_sites=2)
    out: Path = deployment.scratch / "detached"
    command = ("server", "run", deployment.server.path, study, "--out", out, "--detach")

    # Who has answered is shown while the sites are asked; nothing else works in the run folder.
    deployment.hold("north-detached-declare", "server-1-between")
    deployment.start("detach", *command)
    assert deployment.finished("detach", seconds=400) == 0, deployment.log("detach").read_text()
    (run,) = [row["run"] for row in json.loads(told("runs", "--json")[1])]
    assert f"Run {run} goes on without this terminal." in deployment.log("detach").read_text()
    deployment.held("north-detached-declare", seconds=400)
    wait_for(
        lambda: waiting(looked()) == ("the sites agree", ["south"]), seconds=300, what="an answer"
    )
    code, said = told("run", study, "--out", out, "--resume")
    assert code == 1
    assert f"found {run} (in {out}); choose another --out" in said
    deployment.release("north-detached-declare")

    # It is stopped between two rounds, and can be gone on with.
    deployment.held("server-1-between", seconds=400)
    assert looked()["run"]["absent"] == {"east": {"code": "away", "reason": AWAY}}
    code, said = told("stop", run)
    deployment.release("server-1-between")
    assert (code, f"{run}: stopped. Run folder: {out}" in said) == (0, True)
    (row,) = json.loads(told("runs", "--json")[1])
    assert (row["outcome"], row["done"], row["under_way"]) == ("stopped", 1, False)
    code, said = told("stop", run)
    assert (code, "ended at" in said) == (2, True)

    # Who would rather wait does, until the last hospital is back.
    deployment.start("again", *command, "--resume", "--require-all")
    assert deployment.finished("again", seconds=400) == 0, deployment.log("again").read_text()
    there = ("the sites connect", ["north", "south"])
    wait_for(lambda: waiting(looked()) == there, seconds=300, what="two of three sites")
    assert looked()["run"]["waiting"]["deadline"] is None
    deployment.start_site("east")
    code, log = told("logs", run, "--follow")
    assert code == 0
    assert log.rstrip().endswith(f"{run}: completed")
    assert f"east takes no part: {AWAY}" in log
    assert "the sites connect: 2 of 3; waiting for east, however long that takes" in log
    assert f"east took no part in round 1: {AWAY}." in " ".join(log.split())
    assert [set(line.sites) for line in RunFolder(out).rounds()] == [
        {"north", "south"},
        {"east", "north", "south"},
    ]
    assert f"<strong>east took no part in round 1: {AWAY}.</strong>" in (
        out / "report.html"
    ).read_text(encoding="utf-8")


def test_a_run_that_sigterm_ends_says_so_and_stops_at_once(
    deployment: Any, told: Any, wait_for: Any
) -> None:
    study = deployment.study("terminated", rounds=2, timeout=200.0)
    out = deployment.scratch / "terminated"
    deployment.hold("north-terminated-declare")
    deployment.start("terminated", "server", "run", deployment.server.path, study, "--out", out)
    deployment.held("north-terminated-declare", seconds=400)
    deployment.running["terminated"].terminate()
    assert deployment.finished("terminated", seconds=60) == 143
    deployment.release("north-terminated-declare")
    said = deployment.log("terminated").read_text()
    assert said.startswith("Study terminated: 2 rounds with at least 3 of the admitted hospitals")
    assert "Stopped. What was charged to a ledger stays charged" in said
    rows = {row["study"]: row for row in json.loads(told("runs", "--json")[1])}
    assert rows["terminated"]["state"] == "stopped"
    wait_for(
        lambda: deployment.child(deployment.running["server"], word="flwr-serverapp") is None,
        seconds=60,
        what="the server's process to end",
    )


def test_a_server_that_is_away_is_said_to_be_away(deployment: Any, told: Any) -> None:
    """The last test of this module, since it ends the server."""
    deployment.running["server"].terminate()
    deployment.finished("server", seconds=60)
    study = deployment.study("away", rounds=1, timeout=60.0)
    for flags in ((), ("--detach",)):
        code, said = told("run", study, "--out", deployment.scratch / "away", *flags)
        assert (code, "expected a running server (`medfl server start`)" in said) == (1, True)
    code, said = told("runs")
    assert (code, "completed" in said) == (0, True)
