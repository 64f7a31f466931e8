"""Before round 1: who is waited for, for how long, and what is written down of who is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from medfl.errors import QuorumError
from medfl.runs.attendance import Absence, Attendance
from medfl.runs.files import WAITING
from medfl.runs.waiting import AGREEING, CONNECTING
from medfl.server import roll_call
from medfl.server.progress import Silent
from medfl.server.roll_call import RollCall
from medfl.server.run import Run
from medfl.server.run_folder import ROSTER, RunFolder
from medfl.study.in_process_grid import InProcessGrid
from medfl.study.simulation import simulate

EXPECTED = {"east": 3, "north": 5, "south": 9}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "POLL_SECONDS", 0.01)


@pytest.fixture
def run_of(federation: Any, tmp_path: Path) -> Callable[..., Run]:
    def make(*, timeout: float = 60.0, **changes: Any) -> Run:
        settings = {"min_sites": 2, "round_timeout_seconds": timeout}
        values = {
            "study": federation.study(aggregation=settings),
            "folder": RunFolder(tmp_path / "run"),
            "run": "run",
            "private": True,
            "variant": "federated",
            "start": dict,
            "progress": Silent(),
            "expected": EXPECTED,
        }
        return Run(**{**values, **changes})

    return make


class Arriving:
    """A grid whose nodes connect one after the other, one a look."""

    def __init__(self, *nodes: int) -> None:
        self._nodes = nodes
        self.looks = 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return list(self._nodes[: self.looks])


def connected(run: Run, grid: Any) -> tuple[list[int], dict[str, Absence]]:
    with RollCall(run, first_round=1) as roll:
        return roll.connected(grid), roll.absent


def test_admitted_sites_get_some_time_to_connect(run_of: Callable[..., Run]) -> None:
    grid = Arriving(3, 4, 9, 5)
    nodes, absent = connected(run_of(patience=60.0), grid)
    assert nodes == [3, 5, 9]  # nobody asks a node that was not admitted under a name
    assert absent == {}
    assert grid.looks == 4


def test_a_site_that_does_not_connect_is_named(run_of: Callable[..., Run]) -> None:
    run = run_of(patience=0.2)
    begin = time.monotonic()
    nodes, absent = connected(run, Arriving(3, 9))
    assert time.monotonic() - begin >= 0.2
    assert nodes == [3, 9]
    away = Absence(code="away", seconds=0.2)
    assert absent == {"north": away}
    assert run.folder.attendance() == [Attendance(first_round=1, absent={"north": away})]
    assert not (run.folder.path / WAITING.name).exists()


def test_too_few_sites_are_named_and_written_down(run_of: Callable[..., Run]) -> None:
    run = run_of(patience=0.1, timeout=0.2)
    with pytest.raises(QuorumError) as caught:
        connected(run, Arriving(3))
    assert str(caught.value) == (
        "Expected at least 2 connected sites after 0.2 s, found 1 (north: no answer within 0.20 s "
        "(not connected); south: no answer within 0.20 s (not connected))."
    )
    assert set(run.folder.attendance()[0].absent) == {"north", "south"}


def test_all_sites_are_waited_for_where_the_run_requires_them(run_of: Callable[..., Run]) -> None:
    class Late(Arriving):
        def get_node_ids(self) -> list[int]:
            nodes = super().get_node_ids()
            waiting = WAITING.read(run.folder.path)
            assert (waiting.phase, waiting.deadline) == (CONNECTING, None)
            return nodes if time.monotonic() > there else nodes[:2]

    there = time.monotonic() + 0.5
    run = run_of(require_all=True)
    assert connected(run, Late(3, 5, 9)) == ([3, 5, 9], {})


def test_who_is_not_on_the_roster_is_not_required(run_of: Callable[..., Run]) -> None:
    run = run_of(require_all=True)
    members: Any = {
        name: {"event_key": "0" * 64, "declared_patients": 4} for name in ("east", "north")
    }
    run.folder.write(ROSTER, ROSTER.kind.validate_python(members))
    nodes, absent = connected(run, Arriving(3, 5))
    assert nodes == [3, 5]
    assert set(absent) == {"south"}
    with RollCall(run, first_round=1) as roll:
        roll.miss("south", "not-on-roster")
        roll.require(["east", "north"], to="agree")
        roll.miss("north", "paused")
        with pytest.raises(QuorumError, match=r"all 2 sites to agree \(--require-all\), found 2"):
            roll.require(["east", "west"], to="agree")


class Deaf(InProcessGrid):
    """Node 9 does not hear the first question."""

    asked = 0

    def deliver(self, message: Message) -> Message | None:
        self.asked += 1
        if message.metadata.dst_node_id == 9 and self.asked <= 3:
            return None
        return Message(RecordDict(), reply_to=message)


@pytest.mark.parametrize("require_all", [False, True])
def test_a_silent_site_is_left_out_or_asked_again(
    require_all: bool, run_of: Callable[..., Run], as_server: None
) -> None:
    grid: Grid = Deaf(ClientApp(), node_configs={node: {} for node in EXPECTED.values()})
    run = run_of(require_all=require_all, timeout=0.1)
    nodes = list(EXPECTED.values())
    with RollCall(run, first_round=4) as roll:
        found = roll.ask(grid, nodes, question=RecordDict, kind="query", group="agree")
        waiting = WAITING.read(run.folder.path)
    assert waiting.phase == AGREEING
    assert (waiting.deadline is None) == require_all
    if require_all:
        assert set(found) == {3, 5, 9}
        assert waiting.missing == ()
        assert roll.absent == {}
    else:
        assert set(found) == {3, 5}
        assert waiting.missing == ("south",)
        assert roll.absent["south"].code == "silent"
        assert run.folder.attendance()[0].first_round == 4


@pytest.mark.slow
@pytest.mark.parametrize("trust", ["local", "secure"])
def test_a_study_names_the_site_that_it_goes_on_without(
    trust: str, federation: Any, tmp_path: Path
) -> None:
    class Heard(Silent):
        def left_out(self, absent: Any) -> None:
            told.append({name: at.reason for name, at in absent.items()})

    told: list[dict[str, str]] = []
    blind = federation.site("north", data={"modalities": ["t1c"]})
    secure = {"trust": "secure", "colluding_sites": 0} if trust == "secure" else {}
    study = federation.study(training={"rounds": 1}, privacy=secure)
    out = tmp_path / "named"
    from medfl.study.simulation import prepare_folder

    prepare_folder(out, study=study, resume=False)
    sites = [*federation.sites("east", "south"), blind]
    simulate(study, sites, out=out, engine="inprocess", progress=Heard())
    assert told == [{"north": "modalities"}]
    (start,) = RunFolder(out).attendance()
    assert start == Attendance(
        first_round=1, absent={"north": Absence(code="modalities", seconds=0)}
    )
