"""A run is stopped in every phase while sites are slow: each site takes part in the next one.

A site that is at work for a run that has ended would miss the next one, and one whose queue is
behind would miss all of them, while the server shows it as connected.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any

import psutil
import pytest

from medfl.server.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SITES = ("east", "north", "south")
FORK_SERVER = "multiprocessing.forkserver"


def tasks_of(site: subprocess.Popen[bytes]) -> list[int]:
    """Processes of a site that work on a message: forks of its fork server."""
    parents = {}
    for process in psutil.Process(site.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if FORK_SERVER in " ".join(process.cmdline()):
                parents[process.pid] = process.ppid()
    return [number for number, parent in parents.items() if parent in parents]


@pytest.fixture
def stop(deployment: Any) -> Any:
    """Stops a run as Ctrl-C does."""

    def stop_run(name: str) -> None:
        deployment.running[name].send_signal(signal.SIGINT)
        assert deployment.finished(name, seconds=60) != 0

    return stop_run


@pytest.fixture
def wait_until_idle(deployment: Any, wait_for: Any) -> Any:
    """Waits until no site is at work any more."""

    def wait() -> None:
        def is_idle() -> bool:
            return not any(tasks_of(deployment.running[name]) for name in SITES)

        wait_for(is_idle, seconds=150, what="the end of every task")

    return wait


def test_sites_take_part_again_after_a_run_that_was_stopped_in_any_phase(
    deployment: Any, stop: Any, wait_until_idle: Any, require_balanced: Any
) -> None:
    # While they receive the proposal, have received it, and work on it.
    study = deployment.study("asked", rounds=1, timeout=400.0)
    out = deployment.scratch / "asked"
    points = ("east-receiving", "north-received", "south-asked-declare")
    deployment.hold(*points)
    deployment.start("asked", "server", "run", deployment.server.path, study, "--out", out)
    for point in points:
        deployment.held(point, seconds=400)
    stop("asked")
    deployment.release(*points[:2])
    wait_until_idle()
    deployment.release(points[2])

    # Before the charge, after it, and while the update leaves.
    study = deployment.study("trained", rounds=2, timeout=400.0)
    out = deployment.scratch / "trained"
    command = ("server", "run", deployment.server.path, study, "--out", out)
    points = ("north-trained-1-charged", "south-trained-1-read", "east-trained-1-stored")
    deployment.hold(*points)
    deployment.start("trained", *command)
    for point in points:
        deployment.held(point, seconds=400)
    deployment.hold("east-sending")
    deployment.release(points[2])
    deployment.held("east-sending", seconds=400)
    stop("trained")
    # Who has paid comes to the end, and keeps what was paid for; who has not ends at once.
    deployment.release("east-sending", points[0])
    wait_until_idle()
    deployment.release(points[1])
    charged = [deployment.run_of(name, study="trained").charges for name in ("east", "north")]
    assert charged == [1, 1]

    deployment.start("resumed", *command, "--resume")
    code = deployment.finished("resumed", seconds=400)
    assert code == 0, deployment.log("resumed").read_text()[-3000:]
    assert require_balanced("trained", out=out, rounds=2) == dict.fromkeys(SITES, (2, 2))


def test_a_site_whose_task_dies_says_so_at_once_and_takes_part_in_the_next_round(
    deployment: Any,
) -> None:
    study = deployment.study("died", rounds=2, timeout=400.0, min_sites=2)
    out = deployment.scratch / "died"
    deployment.hold("south-died-1-stored")
    deployment.start("died", "server", "run", deployment.server.path, study, "--out", out)
    deployment.held("south-died-1-stored", seconds=400)
    deployment.hold("south-handing-over")
    deployment.release("south-died-1-stored")
    os.kill(deployment.held("south-handing-over", seconds=400), signal.SIGKILL)
    deployment.release("south-handing-over")
    code = deployment.finished("died", seconds=400)
    assert code == 0, deployment.log("died").read_text()[-3000:]
    first, second = RunFolder(out).rounds()
    assert first.sites["south"].outcome not in ("admitted", "silent")
    assert {site.outcome for site in second.sites.values()} == {"admitted"}
