"""A hospital among three peers and an honest server of secure sums, for tests that replace it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from medfl.config import StudyConfig
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import (
    Declaration,
    Proposal,
    Weights,
    read_body,
    to_record,
    weights_digest,
)
from medfl.protocol.secure_round import (
    ADD,
    ADVERTISE,
    ROSTER,
    SHARE,
    AddTask,
    AdvertTask,
    ConfirmTask,
    Member,
    RosterTask,
    ShareTask,
    UnmaskTask,
    answer_of,
    masked_of,
    round_terms,
)
from medfl.secure_sum.collector import Collector
from medfl.secure_sum.messages import Advert, Confirmation, SealedShares
from medfl.secure_sum.party import Party
from medfl.secure_sum.terms import RoundTerms
from medfl.segmentation.networks import trainable_state
from medfl.site import secure_round

OWN = "east"
PEERS = {"north": 5, "south": 4, "west": 4}
RUN = "first"
STUDY: dict[str, Any] = {
    "privacy": {"trust": "secure", "noise": "operating-system"},
    "aggregation": {"min_sites": 3},
}

Case = tuple[str, RecordDict, str]
"""Kind of the message, the message, and the code of the refusal."""

Refused = Callable[[Mapping[str, Case]], None]
"""Sends messages that have to be refused."""


@dataclass
class Room:
    """A hospital, its peers, and an honest server that a test can replace."""

    federation: Any
    hospital: Any
    peers: Mapping[str, SiteKeys]
    study: StudyConfig
    weights: Weights
    sigma: float = 0.0
    parties: dict[str, Party] = field(default_factory=dict)

    @property
    def members(self) -> dict[str, Member]:
        """The roster."""
        keys = {OWN: self.hospital.keys, **self.peers}
        counts = {OWN: 4, **PEERS}
        return {
            name: Member(event_key=keys[name].event_key, declared_patients=counts[name])
            for name in sorted(keys)
        }

    def roster(self, **changes: Any) -> RecordDict:
        """The question whether the hospital agrees to a roster."""
        values = {
            "study": self.study,
            "run": RUN,
            "private": True,
            "members": self.members,
            "noise_multiplier": self.sigma,
        }
        return to_record(RosterTask(**{**values, **changes}))

    def ask(self, kind: str, question: RecordDict) -> RecordDict:
        """A question that has to be answered."""
        answer: RecordDict = self.federation.ask(self.hospital, question, kind=kind)
        assert "error" not in answer, answer.config_records["error"]
        return answer

    def propose(self) -> None:
        """Learn how much noise the hospital needs."""
        proposal = to_record(Proposal(study=self.study, run=RUN, private=True))
        self.mechanism = read_body(self.ask("query", proposal), Declaration).mechanism
        self.sigma = self.mechanism.noise_multiplier

    def join(self) -> None:
        """Agree on everything that comes before round 1."""
        self.propose()
        self.ask(ROSTER, self.roster())

    def advert_task(self, **changes: Any) -> RecordDict:
        """The question with which a round begins."""
        values = {
            "study": self.study,
            "run": RUN,
            "round": 1,
            "model_digest": weights_digest(self.weights),
        }
        return to_record(AdvertTask(**{**values, **changes}))

    def terms(self, **changes: Any) -> RoundTerms:
        """What the peers agree on."""
        values = {
            "run": RUN,
            "round_number": 1,
            "members": self.members,
            "mechanism": self.mechanism,
            "model_digest": weights_digest(self.weights),
            "length": sum(value.numel() for value in self.weights.values()),
        }
        return round_terms(self.study, **{**values, **changes})

    def begin(self) -> None:
        """Begin round 1."""
        self.join()
        self.collector = Collector(self.terms())
        self.parties = {
            name: Party(self.collector.terms, site=name, sign=keys.sign)
            for name, keys in self.peers.items()
        }
        own = answer_of(self.ask(ADVERTISE, self.advert_task()), Advert.from_dict)
        for advert in (own, *(party.advertise() for party in self.parties.values())):
            self.collector.take_advert(advert)

    def share(self) -> None:
        """Deal shares."""
        self.begin()
        adverts = self.collector.adverts()
        own = self.ask(SHARE, share_task(adverts))
        self.collector.take_shares(answer_of(own, SealedShares.from_dict))
        for party in self.parties.values():
            self.collector.take_shares(party.share(adverts))

    def add_task(self, **changes: Any) -> RecordDict:
        """The question for a masked sum."""
        deliveries = changes.pop("deliveries", None)
        if deliveries is None:
            deliveries = [each.to_dict() for each in self.collector.deliveries_for(OWN)]
        weights = changes.pop("weights", self.weights)
        task = AddTask(**{**self.task_values, **changes}, deliveries=tuple(deliveries))
        return to_record(task, weights=weights)

    @property
    def task_values(self) -> dict[str, Any]:
        """A round's work."""
        return {
            "study": self.study,
            "run": RUN,
            "round": 1,
            "message_id": f"{RUN}/1/{OWN}",
            "mechanism": self.mechanism,
        }

    def add(self) -> None:
        """Have everybody add to the sum."""
        self.share()
        self.collector.take_masked(masked_of(self.ask(ADD, self.add_task())))
        zeros = np.zeros(self.collector.terms.length, dtype=np.int64)
        for name, party in self.parties.items():
            deliveries = self.collector.deliveries_for(name)
            self.collector.take_masked(party.mask(deliveries, zeros))


def share_task(adverts: list[Any], **changes: Any) -> RecordDict:
    """The question for shares."""
    values = {"run": RUN, "round": 1, "adverts": tuple(each.to_dict() for each in adverts)}
    return to_record(ShareTask(**{**values, **changes}))


def confirm_task(*survivors: str, **changes: Any) -> RecordDict:
    """The question who survived."""
    return to_record(ConfirmTask(**{"run": RUN, "round": 1, "survivors": survivors, **changes}))


def unmask_task(confirmations: list[Confirmation], **changes: Any) -> RecordDict:
    """The question for what unmasks the sum."""
    values = {"run": RUN, "round": 1, "confirmations": tuple(c.to_dict() for c in confirmations)}
    return to_record(UnmaskTask(**{**values, **changes}))


def make_room(federation: Any, tmp_path: Path) -> Room:
    """A hospital that takes part in secure sums with three peers whose keys it has compared."""
    peers = {name: SiteKeys.create(tmp_path / "peers" / name) for name in PEERS}
    policy = {"trust": ["secure"], "peers": {name: keys.event_key for name, keys in peers.items()}}
    site = federation.hospital(OWN, weight=4.0, privacy=policy)
    hospital = federation.site_state(site)
    study = federation.study(**STUDY)
    weights = trainable_state(hospital.network(study))
    return Room(federation=federation, hospital=hospital, peers=peers, study=study, weights=weights)


def files_of(state: Path) -> dict[str, bytes]:
    """Every file of a hospital but for prepared images and the index of the ledger's log."""
    return {
        str(file): file.read_bytes()
        for file in state.rglob("*")
        if file.is_file() and "cache" not in file.parts and not file.name.endswith("-shm")
    }


def make_refused(
    room: Room, wire: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Refused:
    """What sends one message after the other and makes the same checks of each."""

    def computed(*_: Any, **__: Any) -> Any:
        raise AssertionError("Expected a refusal before anything is computed.")

    def check(cases: Mapping[str, Case]) -> None:
        found = {}
        state = Path(room.hospital.site.state)
        with monkeypatch.context() as patch:
            patch.setattr(secure_round, "noisy_sum", computed)
            room.hospital.open_ledger().close()
            before = files_of(state)
            for name, (kind, question, _) in cases.items():
                caplog.clear()
                reply = room.federation.ask(room.hospital, question, kind=kind)
                assert list(reply) == ["error"], name
                assert list(reply.config_records["error"]) == ["code"]
                found[name] = reply.config_records["error"]["code"]
                (line,) = wire.lines_of_medfl(caplog)
                assert line.startswith(f"Refused with code {found[name]}: ")
                room.hospital.open_ledger().close()
                assert files_of(state) == before, name
        assert found == {name: code for name, (_, _, code) in cases.items()}

    return check


def charges(room: Room) -> int:
    """Rounds that the hospital has paid for, by a ledger that verifies."""
    with room.hospital.open_ledger() as ledger:
        ledger.verify()
        return sum(run.charges for run in ledger.spent().by_run)
