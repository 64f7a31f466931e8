"""Runs of one server know of each other: how long a site may be busy, and who is in what."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from medfl.deployment.coordinator.job import Job, job_path
from medfl.deployment.coordinator.neighbours import neighbours
from medfl.errors import QuorumError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import Proposal, read_body, refusal
from medfl.runs.attendance import STUDIES_AT_ONCE
from medfl.runs.files import WAITING
from medfl.server.agreement import agree
from medfl.server.ledger import FederationLedger
from medfl.server.progress import Silent
from medfl.server.roll_call import RollCall
from medfl.server.run import Neighbour, Run
from medfl.server.run_folder import RunFolder
from medfl.study.in_process_grid import InProcessGrid

NORTH, SOUTH = 9, 10
MECHANISM = Mechanism(
    sampling_prob=0.5,
    noise_multiplier=3.0,
    clip_norm=1.0,
    clipping="normalised",
    local_steps=1,
    declared_patients=20,
    noise_origin="operating-system",
)
OTHERS = (
    Neighbour(run="gliomas-1", seconds=40.0, sites=frozenset({"north"})),
    Neighbour(run="mets-1", seconds=20.0, sites=frozenset({"east"})),
)


def test_only_other_runs_that_somebody_follows_are_neighbours(
    federation: Any, tmp_path: Path, voice_of: Any
) -> None:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    study = federation.study(aggregation={"round_timeout_seconds": 40.0})
    posted = [
        Job(run=name, study=study, out=tmp_path / name, sites={})
        for name in ("own", "second", "first")
    ]
    for job in posted:
        job.out.mkdir()
    said = voice_of("north", mechanism=MECHANISM).declaration()
    RunFolder(tmp_path / "second").append_declaration(said, after_events=0)
    with ExitStack() as stack:
        for number, job in enumerate(posted):
            stack.enter_context(job.posted(jobs, run=number))
        # What a killed command has left is nobody's run.
        killed = posted[0].model_copy(update={"run": "killed"})
        job_path(jobs, 7).write_text(killed.model_dump_json())
        found = neighbours(jobs, run="own")
    assert found == (
        Neighbour(run="first", seconds=40.0, sites=frozenset()),
        Neighbour(run="second", seconds=40.0, sites=frozenset({"north"})),
    )
    assert neighbours(jobs, run="own") == ()


@pytest.fixture
def run(federation: Any, tmp_path: Path) -> Run:
    (tmp_path / "run").mkdir()
    settings = {"round_timeout_seconds": 5.0, "min_sites": 1}
    return Run(
        study=federation.study(aggregation=settings),
        folder=RunFolder(tmp_path / "run"),
        run="own",
        private=True,
        variant="federated",
        start=dict,
        progress=Silent(),
        expected={"north": NORTH, "south": SOUTH},
        neighbours=lambda: OTHERS,
    )


def test_a_message_gets_the_time_of_the_others_besides_its_own(run: Run) -> None:
    assert (run.own_timeout, run.others_timeout, run.timeout) == (5.0, 60.0, 65.0)
    alone = replace(run, neighbours=lambda: ())
    assert (alone.own_timeout, alone.others_timeout, alone.timeout) == (5.0, 0.0, 5.0)


class Busy(InProcessGrid):
    """Two sites that are in as many studies as their policies allow."""

    def __init__(self, run: Run) -> None:
        super().__init__(ClientApp(), node_configs={NORTH: {}, SOUTH: {}})
        self._run = run
        self.beside: list[tuple[str, ...]] = []
        self.ttl: list[float] = []
        self.seconds = 0.0

    def deliver(self, message: Message) -> Message | None:
        self.beside.append(read_body(message.content, Proposal).beside)
        self.ttl.append(message.metadata.ttl)
        waiting = WAITING.read(self._run.folder.path)
        assert waiting.deadline is not None
        self.seconds = (waiting.deadline - waiting.since).total_seconds()
        return Message(refusal(STUDIES_AT_ONCE), reply_to=message)


def test_sites_are_told_of_the_others_and_a_refusal_names_those_that_the_site_is_in(
    run: Run, as_server: None
) -> None:
    grid = Busy(run)
    with pytest.raises(QuorumError) as caught, RollCall(run, first_round=1) as roll:
        agree(grid, run, ledger=FederationLedger(run.folder), roll=roll)
    assert grid.beside == [("gliomas-1", "mets-1")] * 2
    assert grid.ttl == [65.0] * 2
    assert grid.seconds == 65.0
    assert "north: it is in as many studies at once as its policy allows (gliomas-1)" in str(
        caught.value
    )
    assert "south: it is in as many studies at once as its policy allows (none that" in str(
        caught.value
    )
    (start,) = run.folder.attendance()
    assert start.absent["north"].beside == ("gliomas-1",)
    assert start.absent["south"].beside == ()
