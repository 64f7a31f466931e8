"""A secure sum between real processes over TLS: it trains, sites may die in it, ledgers agree."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.protocol.keys import KEYS, SiteKeys
from medfl.server.run_folder import RunFolder
from medfl.site.state_folder import SUMS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("east", "north", "south")
DIES = "south"
ANSWERED = ("advertise", "share", "confirm", "unmask")
"""Phases whose answers are held back here; training is the fifth."""


@pytest.fixture(scope="module")
def acquainted(deployment: Any) -> Any:
    """The hospitals know each other's keys, and accept secure sums."""
    keys = {
        name: SiteKeys.read(load_site(deployment.sites[name]).state / KEYS).event_key
        for name in SITES
    }
    for name in SITES:
        peers = "".join(f'{other} = "{keys[other]}"\n' for other in SITES if other != name)
        path: Path = deployment.sites[name]
        text = path.read_text()
        path.write_text(f'{text}trust = ["local", "secure"]\n[privacy.peers]\n{peers}')
        site = load_site(path)
        assert site.weight == site.declared_patients
    return deployment


def secure_study(deployment: Any, name: str, *, rounds: int, timeout: float) -> Path:
    """A study whose server sees the sum only; two of three sites are enough."""
    path: Path = deployment.study(name, rounds=rounds, timeout=timeout, min_sites=2)
    path.write_text(path.read_text().replace("[training]", 'trust = "secure"\n[training]'))
    return path


def phase_of(out: Path) -> str:
    """The phase that a run waits in; empty text between two."""
    with suppress(OSError, ValueError):
        return str(json.loads((out / "waiting.json").read_text())["phase"])
    return ""


def test_three_hospitals_train_and_the_server_keeps_no_update(acquainted: Any) -> None:
    study = secure_study(acquainted, "hidden", rounds=1, timeout=120.0)
    out = acquainted.scratch / "hidden-run"
    acquainted.start("hidden", "server", "run", acquainted.server.path, study, "--out", out)
    assert acquainted.finished("hidden", seconds=700) == 0, acquainted.log("hidden").read_text()
    (line,) = RunFolder(out).rounds()
    assert {each.outcome for each in line.sites.values()} == {"admitted"}
    for name in SITES:
        run = acquainted.run_of(name, study="hidden")
        assert (run.charges, run.steps, run.released) == (1, 1, 1)
        state = load_site(acquainted.sites[name]).state / SUMS / RunFolder(out).run_id()
        found = {path.name for path in state.iterdir()}
        assert found == {"lock", "roster.json", "round-0000001.state"}
        kept = (*state.iterdir(), state, state.parent)
        assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
    assert not (out / "updates").exists()


def test_a_server_that_is_killed_in_any_phase_goes_on(acquainted: Any) -> None:
    rounds = len(ANSWERED) + 2
    study = secure_study(acquainted, "killed", rounds=rounds, timeout=120.0)
    out = acquainted.scratch / "killed-run"
    command = ("server", "run", acquainted.server.path, study, "--out", out)
    acquainted.start("killed", *command)
    # In training it is killed where the hospital has paid, in all others with an answer on its way;
    # two of three hospitals are enough to unmask, so that there two of them hold theirs back.
    points: list[tuple[str, ...]] = [
        (f"{DIES}-{number}-{phase}",) for number, phase in enumerate(ANSWERED, start=1)
    ]
    points[-1] += (f"north-{len(ANSWERED)}-unmask",)
    points.append((f"{DIES}-killed-{len(points) + 1}-charged",))
    for group in points:
        acquainted.hold(*group)
        for point in group:
            acquainted.held(point, seconds=200)
        os.killpg(acquainted.running["killed"].pid, signal.SIGKILL)
        acquainted.running["killed"].wait(timeout=20)
        acquainted.release(*group)
        acquainted.start("killed", *command, "--resume")
    assert acquainted.finished("killed", seconds=500) == 0, acquainted.log("killed").read_text()
    *void, last = RunFolder(out).rounds()
    assert len(void) == len(points)
    assert {each.code for line in void for each in line.sites.values()} == {"secure-sum-void"}
    assert {each.outcome for each in last.sites.values()} == {"admitted"}
    for name in SITES:
        run = acquainted.run_of(name, study="killed")
        assert rounds >= run.charges >= run.released >= 1


def test_a_process_of_a_hospital_may_die_in_any_phase(acquainted: Any) -> None:
    study = secure_study(acquainted, "phases", rounds=len(ANSWERED), timeout=120.0)
    out = acquainted.scratch / "phases-run"
    points = [f"{DIES}-{number}-{phase}" for number, phase in enumerate(ANSWERED, start=1)]
    acquainted.hold(*points)
    acquainted.start("phases", "server", "run", acquainted.server.path, study, "--out", out)
    for point in points:
        os.kill(acquainted.held(point, seconds=200), signal.SIGKILL)
        acquainted.release(point)
    assert acquainted.finished("phases", seconds=500) == 0, acquainted.log("phases").read_text()
    for line, phase in zip(RunFolder(out).rounds(), ANSWERED, strict=True):
        found = {name: site.outcome for name, site in line.sites.items()}
        assert {found[name] for name in SITES if name != DIES} == {"admitted"}
        # Whoever dies after its vector has arrived is in the sum without having to do more.
        assert (found[DIES] == "admitted") is (phase in ("confirm", "unmask"))
    for name in SITES:
        run = acquainted.run_of(name, study="phases")
        assert run.charges >= run.released


def test_a_hospital_may_die_in_a_round(acquainted: Any, wait_for: Any) -> None:
    study = secure_study(acquainted, "dying", rounds=1, timeout=60.0)
    out = acquainted.scratch / "dying-run"
    acquainted.start("dying", "server", "run", acquainted.server.path, study, "--out", out)
    wait_for(lambda: phase_of(out) == "training", seconds=200, what="the first sum")
    os.killpg(acquainted.running[DIES].pid, signal.SIGKILL)
    assert acquainted.finished("dying", seconds=500) == 0, acquainted.log("dying").read_text()
    (line,) = RunFolder(out).rounds()
    assert {line.sites[name].outcome for name in ("east", "north")} == {"admitted"}
    for name in SITES:  # the ledger of whoever died before the charge has no such run
        runs = [run for run in acquainted.spent(name).by_run if run.study == "dying"]
        charges = sum(run.charges for run in runs)
        assert charges >= (line.sites[name].outcome == "admitted")
