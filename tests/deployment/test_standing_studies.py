"""Several studies over one deployment, as real processes: at once, and one after the other."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.deployment.coordinator.run_book import RunRecord
from medfl.protocol.keys import KEYS, SiteKeys
from medfl.runs.attendance import STUDIES_AT_ONCE
from medfl.runs.files import WAITING
from medfl.runs.waiting import AGREEING, Waiting
from medfl.server.run_folder import RunFolder
from medfl.site.state_folder import SUMS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SITES = ("east", "north", "south")
BOTH = ("north", "south")
"""Those that take part in two studies at once; east is in one, as by default."""

LONG, SHORT = 300.0, 200.0
"""Time limits of a round of the two studies."""


@pytest.fixture(scope="module")
def standing(deployment: Any) -> Any:
    """The hospitals take part in studies of either kind, two of them in two studies at once."""
    keys = {
        name: SiteKeys.read(load_site(deployment.sites[name]).state / KEYS).event_key
        for name in SITES
    }
    for name in SITES:
        peers = "".join(f'{other} = "{keys[other]}"\n' for other in SITES if other != name)
        policy = 'trust = ["local", "secure"]\n' + "studies_at_once = 2\n" * (name in BOTH)
        path: Path = deployment.sites[name]
        path.write_text(f"{path.read_text()}{policy}[privacy.peers]\n{peers}")
    return deployment


@pytest.fixture(scope="module")
def told(standing: Any) -> Any:
    """Runs a command to its end: exit code, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        ended = subprocess.run(
            [standing.command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            env={**os.environ, "XDG_STATE_HOME": str(standing.memory)},
        )
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended.returncode, ended.stdout + ended.stderr

    return run


def begin(deployment: Any, study: Path, *, name: str = "", flags: tuple[str, ...] = ()) -> Path:
    """Start a study; its run folder."""
    out: Path = deployment.scratch / f"{name or study.stem}-run"
    place = deployment.server.path
    deployment.start(out.name, "server", "run", place, study, "--out", out, *flags)
    return out


def waiting_in(out: Path, *, phase: str) -> Waiting | None:
    """Whom a run waits for in a phase."""
    if not (out / WAITING.name).exists():
        return None
    found = WAITING.read(out)
    return found if found.phase == phase else None


def under_way(deployment: Any) -> list[RunRecord]:
    """The runs that somebody follows, the one that was started last at the end."""
    found: list[RunRecord] = deployment.server.book.under_way()
    return found


def test_two_studies_at_once_and_the_next_one_after_them(
    standing: Any, told: Any, wait_for: Any
) -> None:
    place = standing.server.path
    local = standing.study("local", rounds=2, timeout=LONG)
    secure = standing.study("secure", rounds=1, timeout=SHORT, min_sites=2)
    secure.write_text(secure.read_text().replace("[training]", 'trust = "secure"\n[training]'))

    # North is held in a round of the first study, until the second one has asked everybody.
    standing.hold("north-local-1-read")
    first = begin(standing, local)
    standing.held("north-local-1-read")
    second = begin(standing, secure, flags=("--detach",))
    assert standing.finished(second.name, seconds=400) == 0, standing.log(second.name).read_text()
    asked = wait_for(
        lambda: (
            (found := waiting_in(second, phase=AGREEING))
            and set(found.answered) == {"east", "south"}
            and found
        ),
        seconds=300,
        what="two answers",
    )
    # Nobody is late who is at work for the other study first.
    assert (asked.deadline - asked.since).total_seconds() == SHORT + LONG
    one, other = under_way(standing)
    assert (one.out, other.out) == (first, second)
    rows = json.loads(told("server", "runs", place, "--json")[1])
    assert [(row["run"], row["state"]) for row in rows] == [
        (one.run, "under way"),
        (other.run, "under way"),
    ]
    assert f"Also under way: {one.run} (study local)" in told("server", "status", place)[1]
    assert f"Beside {one.run} (in {first})" in standing.log(second.name).read_text()
    standing.release("north-local-1-read")

    # Both come to their end; who takes part in one study at a time is named, with that study.
    assert standing.finished(first.name, seconds=900) == 0, standing.log(first.name).read_text()
    code, log = told("server", "logs", place, other.run, "--follow")
    assert (code, log.rstrip().endswith(f"{other.run}: completed")) == (0, True)
    reason = (
        f"it is in as many studies at once as its policy allows ({one.run}) and can take part "
        f"when one of them has ended ({STUDIES_AT_ONCE})"
    )
    assert f"east takes no part: {reason}" in " ".join(log.split())
    assert reason in (second / "report.html").read_text(encoding="utf-8")
    (start,) = RunFolder(second).attendance()
    assert [start.absent["east"].code, *start.absent] == [STUDIES_AT_ONCE, "east"]
    for out, sites, rounds in ((first, SITES, 2), (second, BOTH, 1)):
        lines = RunFolder(out).rounds()
        assert [line.round for line in lines] == list(range(1, rounds + 1))
        found = {name: at.outcome for line in lines for name, at in line.sites.items()}
        assert found == dict.fromkeys(sites, "admitted")

    # The next study begins at once, and nobody is held up.
    third = begin(standing, standing.study("next", rounds=1, timeout=LONG))
    assert standing.finished(third.name, seconds=900) == 0, standing.log(third.name).read_text()
    assert [set(line.sites) for line in RunFolder(third).rounds()] == [set(SITES)]

    # Each ledger has all of it once, and each sum is kept by its own run.
    expected = {first: ("local", 2), second: ("secure", 1), third: ("next", 1)}
    for name in SITES:
        runs = {run.run: run for run in standing.spent(name).by_run}
        for out, (study, steps) in expected.items():
            run = runs.pop(RunFolder(out).run_id(), None)
            if run is None:
                assert (name, out) == ("east", second)
                continue
            assert (run.study, run.charges, run.steps, run.released) == (study, *[steps] * 3)
            code, said = told("ledger", "verify", standing.sites[name], "--run", out)
            assert (code, out.name) == (0, out.name), said
        assert runs == {}
    for name in BOTH:
        sums = standing.site(name).state / SUMS
        assert [path.name for path in sums.iterdir()] == [other.run]


def test_one_of_two_runs_is_stopped_and_a_server_ends_both_with_a_word(
    standing: Any, told: Any, wait_for: Any
) -> None:
    """The last test of this module, since it ends the server. Both runs are of one study."""
    place = standing.server.path
    study = standing.study("twice", rounds=1, timeout=LONG, min_sites=2)
    standing.hold("north-twice-1-read")
    first = begin(standing, study, name="one")
    standing.held("north-twice-1-read")
    second = begin(standing, study, name="other")
    wait_for(
        lambda: (found := waiting_in(second, phase=AGREEING)) and "south" in found.answered,
        seconds=300,
        what="an answer",
    )
    one, other = under_way(standing)
    assert one.run != other.run

    code, said = told("server", "stop", place, second)
    assert (code, f"{other.run}: stopped" in said) == (0, True)
    assert standing.finished(second.name, seconds=60) != 0
    assert [record.run for record in under_way(standing)] == [one.run]

    stopped = datetime.now(UTC)
    begin(standing, study, name="other", flags=("--resume",))
    wait_for(
        lambda: (found := waiting_in(second, phase=AGREEING)) and found.since > stopped,
        seconds=300,
        what="the stopped run to go on",
    )
    standing.running["server"].terminate()
    standing.finished("server", seconds=90)
    for out in (first, second):
        assert standing.finished(out.name, seconds=400) == 1
        said = standing.log(out.name).read_text()
        assert "Traceback" not in said
        assert "Continue with --resume." in said.splitlines()[-1]
    standing.release("north-twice-1-read")
    assert under_way(standing) == []
