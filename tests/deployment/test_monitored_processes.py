"""Real processes: both pages while a study runs, a hook that is called, and who listens where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from medfl.deployment.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Each call leaves a file of its own, whose name is the event.
HOOK = """#!/bin/sh
cat > "$1/$MEDFL_EVENT.$$"
"""
SHORT_GIGABYTES = 1e6
LABELS = ("study", "run", "site", "state")


def monitoring(folder: Path, *, port: int) -> str:
    """A table by which a disk of any size is low, and its hook."""
    calls = folder / "calls"
    calls.mkdir(exist_ok=True)
    hook = folder / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o700)
    words = json.dumps([str(hook), str(calls)])
    return (
        f"\n[monitoring]\nport = {port}\nhook = {words}\n"
        f"disk_gigabytes = {SHORT_GIGABYTES}\ncertificate_days = 0\nbudget_left = 0.0\n"
    )


def calls(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Code and content of each call."""
    found = []
    for path in sorted((folder / "calls").iterdir()):
        content = path.read_text()
        if content:  # else it is just being written
            found.append((path.name.partition(".")[0], json.loads(content)))
    return found


def page(port: int, path: str) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.get(f"http://127.0.0.1:{port}{path}")


def numbers(port: int) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[name] for name in LABELS if name in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(page(port, "/metrics").text)
        for sample in family.samples
    }


def listening(process: subprocess.Popen[bytes]) -> dict[int, str]:
    """Port and address of everything that a process and its children listen on."""
    found: dict[int, str] = {}
    whole = psutil.Process(process.pid)
    for each in (whole, *whole.children(recursive=True)):
        for connection in each.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.port] = connection.laddr.ip
    return found


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("server", "north")}


@pytest.fixture(scope="module")
def watched(deployment: Any, ports: dict[str, int], wait_for: Any) -> Any:
    """The deployment, in which the server and the hospital north are monitored."""
    deployment.scratch.chmod(0o700)
    folders = {"server": deployment.server.path, "north": deployment.scratch}
    with deployment.sites["north"].open("a") as file:
        file.write(monitoring(folders["north"], port=ports["north"]))
    options = deployment.server.path / "server.toml"
    options.write_text(monitoring(folders["server"], port=ports["server"]))
    for name in ("north", "server"):
        deployment.running[name].terminate()
        deployment.running[name].wait(timeout=120)
    deployment.start_server()
    deployment.start_site("north")
    wait_for(lambda: deployment.online() == set(deployment.sites), seconds=120, what="the sites")
    return deployment


def status(deployment: Any, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [deployment.command, *map(str, arguments), "--json"],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_both_pages_follow_a_study_and_the_hook_is_called_once(
    watched: Any, ports: dict[str, int], wait_for: Any
) -> None:
    north, server = ports["north"], ports["server"]
    study = watched.study("monitored", rounds=2, timeout=600.0, min_sites=2)
    watched.hold("server-1-between")
    out = watched.scratch / "run"
    watched.start("run", "server", "run", watched.server.path, study, "--out", out)
    watched.held("server-1-between")
    both = (numbers(north), numbers(server))
    (run,) = [key[2] for key in both[1] if key[0] == "medfl_server_rounds_total"]
    assert both[1]["medfl_server_rounds_total", "monitored", run] == 1.0
    assert both[1]["medfl_server_runs", "under-way"] == 1.0
    assert both[1]["medfl_server_site_connected", "north"] == 1.0
    assert both[0]["medfl_site_rounds_total", "monitored", run] == 1.0
    assert both[0]["medfl_site_connected",] == 1.0
    spent = both[0]["medfl_site_epsilon_spent",]
    assert 0 < spent < 40
    assert both[0]["medfl_site_epsilon_left",] == pytest.approx(40 - spent)
    assert [page(port, "/health").json()["status"] for port in (north, server)] == ["ok", "ok"]
    told = status(watched, "site", "status", watched.sites["north"])
    assert (told["running"], told["connected"], told["health"]["reasons"]) == (True, True, [])
    assert told["ledger"]["epsilon_spent"] == pytest.approx(spent)
    assert status(watched, "server", "status", watched.server.path)["run"]["done"] == 1

    watched.release("server-1-between")
    assert watched.finished("run", seconds=400) == 0
    for folder, side in ((watched.scratch, "site"), (watched.server.path, "server")):
        wait_for(lambda at=folder: calls(at), seconds=60, what="a call of the hook")
        found = calls(folder)
        (low,) = [content for code, content in found if code == "disk-low"]
        assert (low["side"], low["event"]) == (side, "disk-low")
        assert low["details"]["free_bytes"] > 0


def test_a_page_is_on_loopback_and_nothing_else_listens(
    watched: Any, ports: dict[str, int]
) -> None:
    asked = listening(watched.running["north"])
    unasked = listening(watched.running["south"])
    assert set(asked.values()) == set(unasked.values()) == {"127.0.0.1"}
    assert ports["north"] in asked
    # Node and tasks speak to each other; the page is one more.
    assert len(unasked) == 1
    assert len(asked) == 2
    assert listening(watched.running["server"])[ports["server"]] == "127.0.0.1"
    assert not (watched.site("south").state / "events-told.json").exists()


def test_a_taken_port_is_told_at_once_and_a_killed_server_is_missed(
    watched: Any, ports: dict[str, int], wait_for: Any, tmp_path: Path
) -> None:
    other = watched.sites["south"].read_text() + f"\n[monitoring]\nport = {ports['north']}\n"
    watched.running["south"].terminate()
    watched.running["south"].wait(timeout=120)
    watched.sites["south"].write_text(other)
    watched.start_site("south")
    assert watched.finished("south", seconds=120) == 2
    (line,) = [
        line
        for line in watched.log("south").read_text().splitlines()
        if line.startswith("error: monitoring.port: ")
    ]
    assert f"found {ports['north']}: Address already in use" in line

    os.killpg(watched.running["server"].pid, signal.SIGKILL)
    watched.running["server"].wait(timeout=60)

    def is_missed() -> bool:
        answer = page(ports["north"], "/health")
        return answer.status_code == 503 and answer.json()["reasons"] == ["not-connected"]

    wait_for(is_missed, seconds=180, what="the lost connection on the page")
