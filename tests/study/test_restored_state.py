"""A site whose whole state folder comes out of an old backup, in the middle of a run.

Ledger, head, outbox and keys are all of one time, so that nothing in the folder contradicts
itself. The server notices by what the site has said before; a hospital's own witness notices first.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from medfl.protocol.messages import Declaration, Proposal, TrainTask, read_body, to_record
from medfl.server.account import privacy_summary
from medfl.server.ledger import FederationLedger

pytestmark = pytest.mark.slow

Answer = Callable[[], Message]

BAD = "north"
THREE_ROUNDS: dict[str, Any] = {"training": {"rounds": 3}}


class Restored:
    """Keeps a copy of a folder before round 2 and puts it back before round 3.

    Args:
        folder: The state folder of the bad site.
        then: Done at the site after the copy is back.
        stop: Whether the server is stopped at that point.
    """

    def __init__(
        self, folder: Path, *, then: Callable[[], object] = lambda: None, stop: bool = False
    ) -> None:
        self._folder = folder
        self._backup = folder.with_name(f"backup of {folder.name}")
        self._then = then
        self._stop = stop

    def __call__(self, site: str, message: Message, answer: Answer) -> Message:
        if message.metadata.message_type == "train" and site == BAD:
            number = read_body(message.content, TrainTask).round
            if number == 2:
                shutil.copytree(self._folder, self._backup)
            if number == 3:
                shutil.rmtree(self._folder)
                shutil.copytree(self._backup, self._folder)
                self._then()
                if self._stop:
                    raise KeyboardInterrupt
        return answer()


def state(federation: Any) -> Path:
    """Where the bad site keeps its state in this test's run."""
    folder: Path = federation.scratch / "run" / "sites" / BAD
    return folder


def epsilons(finished: Any, number: int) -> dict[str, float]:
    sites = finished.folder.rounds()[number - 1].sites
    return {name: site.epsilon for name, site in sites.items()}


def steps(finished: Any) -> dict[str, int]:
    """Steps by site, read back from the run folder."""
    ledger = FederationLedger(finished.folder)
    return {
        site: sum(charge.steps for charge in ledger.charges(site)) for site in ledger.declarations
    }


def test_the_server_notices_a_ledger_that_went_back(federation: Any) -> None:
    finished = federation.run(
        federation.study(**THREE_ROUNDS), federation.sites(), fault=Restored(state(federation))
    )
    assert finished.outcomes(2)[BAD] == ("admitted", "")
    assert finished.outcomes(3) == {
        "east": ("admitted", ""),
        BAD: ("rejected", "ledger-rolled-back"),
        "south": ("admitted", ""),
    }
    # The site's own ledger has forgotten a round, the server's account has not.
    assert finished.charges(BAD) == 2
    assert epsilons(finished, 3)[BAD] == epsilons(finished, 3)["south"]
    assert steps(finished) == {"east": 3, BAD: 3, "south": 3}


def test_the_server_notices_although_the_ledger_has_grown_since(federation: Any) -> None:
    """Entries of other runs lift the sequence beyond what the server has seen."""
    site = federation.site(BAD)

    def grow() -> None:
        for number in range(4):
            study = federation.study(id=f"other-{number}")
            proposal = Proposal(study=study, run=f"other-{number}", private=True)
            place = federation.site_state(site)
            read_body(federation.ask(place, to_record(proposal), kind="query"), Declaration)

    fault = Restored(state(federation), then=lambda: aside(grow))
    finished = federation.run(federation.study(**THREE_ROUNDS), federation.sites(), fault=fault)
    assert finished.outcomes(3)[BAD] == ("rejected", "ledger-rolled-back")
    last = finished.folder.events()
    sequences = [event.ledger_sequence for event in last if event.site == BAD]
    assert sequences == sorted(sequences)  # the sequence alone would not have told
    assert epsilons(finished, 3)[BAD] == epsilons(finished, 3)["south"]


def aside(action: Callable[[], object]) -> None:
    """Do something in another thread, as another server would ask the site."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(action).result()


def test_a_resumed_run_goes_on_without_a_site_whose_ledger_went_back(federation: Any) -> None:
    study, sites = federation.study(**THREE_ROUNDS), federation.sites()
    with pytest.raises(KeyboardInterrupt):
        federation.run(study, sites, fault=Restored(state(federation), stop=True), run_id="r")
    finished = federation.run(study, sites, resume=True, run_id="r")
    assert finished.outcomes(3) == {"east": ("admitted", ""), "south": ("admitted", "")}
    assert steps(finished) == {"east": 3, BAD: 2, "south": 3}


def test_a_hospital_notices_by_itself_and_charges_nothing(federation: Any) -> None:
    hospital = federation.hospital(BAD)
    study = federation.study(privacy={"noise": "operating-system"}, **THREE_ROUNDS)
    finished = federation.run(
        study,
        [*federation.sites("east", "south"), hospital],
        fault=Restored(Path(hospital.state)),
    )
    assert finished.outcomes(2)[BAD] == ("admitted", "")
    assert finished.outcomes(3) == {
        "east": ("admitted", ""),
        BAD: ("refused", "ledger"),
        "south": ("admitted", ""),
    }
    # Whether a refusal of that kind came before the charge is not known to the server.
    assert epsilons(finished, 3)[BAD] > epsilons(finished, 2)[BAD]


def test_a_site_that_did_not_come_back_keeps_its_place_in_the_summary(federation: Any) -> None:
    study = federation.study()

    def stop(site: str, message: Message, answer: Answer) -> Message:
        wanted = message.metadata.message_type == "train"
        if wanted and read_body(message.content, TrainTask).round == 2:
            raise KeyboardInterrupt
        return answer()

    with pytest.raises(KeyboardInterrupt):
        federation.run(study, federation.sites(), fault=stop, run_id="r")
    finished = federation.run(study, federation.sites("east", "south"), resume=True, run_id="r")
    assert set(finished.outcomes(2)) == {"east", "south"}
    summary = {entry.site: entry for entry in privacy_summary(finished.folder)}
    assert list(summary) == ["east", BAD, "south"]
    assert (summary[BAD].steps, summary[BAD].lost_rounds) == (1, 1)
    assert 0 < summary[BAD].epsilon_pld < summary["south"].epsilon_pld
