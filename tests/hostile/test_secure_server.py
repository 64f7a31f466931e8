"""A hostile server of secure sums against a hospital's real app: it is refused, and pays nothing.

Three peers take part with keys of their own and an honest server of the protocol between them, so
that each question is wrong in one way only. For all of them alike: the answer is the code and
nothing else, the hospital's log holds one short line, nothing is charged or computed, and no file
of the hospital changes.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from medfl.config import StudyConfig
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import (
    Declaration,
    Proposal,
    TrainTask,
    Weights,
    read_body,
    to_record,
    weights_digest,
)
from medfl.protocol.secure_round import (
    ADD,
    ADVERTISE,
    CONFIRM,
    ROSTER,
    SHARE,
    UNMASK,
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
from medfl.secure_sum.messages import Advert, Confirmation, SealedShares, Unmasking, signed
from medfl.secure_sum.party import Party
from medfl.secure_sum.terms import RoundTerms
from medfl.segmentation.networks import trainable_state
from medfl.site import secure_round

pytestmark = pytest.mark.slow

OWN = "east"
PEERS = {"north": 5, "south": 4, "west": 4}
RUN = "first"
STUDY: dict[str, Any] = {
    "privacy": {"trust": "secure", "noise": "operating-system"},
    "aggregation": {"min_sites": 3},
}
FLIPPED = "f" * 128

Case = tuple[str, RecordDict, str]
"""Kind of the message, the message, and the code of the refusal."""


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


@pytest.fixture
def room(federation: Any, tmp_path: Path) -> Room:
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


@pytest.fixture
def refused(
    room: Room, wire: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[Mapping[str, Case]], None]:
    """Sends one message after the other and makes the same checks of each."""

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


def test_no_roster_that_the_hospital_did_not_choose_is_agreed_to(
    room: Room, refused: Any, wire: Any, federation: Any, tmp_path: Path
) -> None:
    room.propose()
    stranger = SiteKeys.create(tmp_path / "stranger").event_key
    own, members = room.members[OWN], room.members
    alone = {name: members[name] for name in (OWN, "north")}
    invented = Member(event_key=stranger, declared_patients=4)
    local = federation.study(privacy={"noise": "operating-system"})

    def roster(**changes: Any) -> Any:
        return room.roster(members={**members, **changes})

    cases: dict[str, Case] = {
        "an invented site": (ROSTER, roster(zurich=invented), "policy-peers"),
        "another key of a peer": (ROSTER, roster(north=invented), "policy-peers"),
        "a peer's key under another name": (
            ROSTER,
            roster(zurich=members["north"]),
            "policy-peers",
        ),
        "without this site": (
            ROSTER,
            room.roster(members={name: members[name] for name in PEERS}),
            "secure-sum-roster",
        ),
        "this site under another key": (
            ROSTER,
            roster(east=own.model_copy(update={"event_key": stranger})),
            "secure-sum-roster",
        ),
        "this site with more patients": (
            ROSTER,
            roster(east=own.model_copy(update={"declared_patients": 5})),
            "secure-sum-roster",
        ),
        "too short": (ROSTER, room.roster(members=alone), "secure-sum-roster"),
        "this site alone": (
            ROSTER,
            wire.with_body(room.roster(), {"members": dict.fromkeys(PEERS, ...)}),
            "message-body",
        ),
        "less noise than the site needs": (
            ROSTER,
            room.roster(noise_multiplier=room.sigma * 0.99),
            "policy-noise-multiplier",
        ),
        "no noise": (ROSTER, room.roster(noise_multiplier=0.0), "policy-noise-multiplier"),
        "a baseline": (
            ROSTER,
            room.roster(private=False, noise_multiplier=0.0),
            "policy-noise",
        ),
        "a study without a secure sum": (ROSTER, room.roster(study=local), "secure-sum-roster"),
        "a study of trust that the site forbids": (
            "query",
            to_record(Proposal(study=local, run=RUN, private=True)),
            "policy-trust",
        ),
        "a run that is a path": (ROSTER, room.roster(run="../../ledger"), "message-run"),
        "a run that is a folder above": (ROSTER, room.roster(run=".."), "message-run"),
        "a round of a run that nobody agreed to": (
            ADVERTISE,
            room.advert_task(),
            "policy-not-agreed",
        ),
        "a sum of a run that nobody agreed to": (
            ADD,
            room.add_task(deliveries=()),
            "secure-sum-order",
        ),
    }
    refused(cases)
    room.ask(ROSTER, room.roster())
    assert charges(room) == 0


def test_after_the_agreement_nothing_of_it_can_be_exchanged(
    room: Room, refused: Any, federation: Any
) -> None:
    room.join()
    members = room.members
    fewer = {name: members[name] for name in (OWN, "north", "south")}
    other = federation.study(**{**STUDY, "training": {"learning_rate": 0.25}})
    task = TrainTask(**room.task_values)
    local = replace(room.mechanism, trust="local", honest_sites=1)
    shown = TrainTask(**{**room.task_values, "mechanism": local})
    refused(
        {
            "a second roster": (ROSTER, room.roster(members=fewer), "secure-sum-roster"),
            "more noise": (
                ROSTER,
                room.roster(noise_multiplier=2 * room.sigma),
                "policy-noise-multiplier",
            ),
            "another study": (ROSTER, room.roster(study=other), "policy-not-agreed"),
            "a round of another study": (
                ADVERTISE,
                room.advert_task(study=other),
                "policy-not-agreed",
            ),
            "an update that all may see": (
                "train",
                to_record(task, weights=room.weights),
                "policy-trust",
            ),
            "an update under the noise of the sum": (
                "train",
                to_record(shown, weights=room.weights),
                "policy-trust",
            ),
            "a round beyond the study": (ADVERTISE, room.advert_task(round=3), "policy-rounds"),
            "a path for a run": (ADVERTISE, room.advert_task(run="../x"), "policy-not-agreed"),
            "shares in a path": (SHARE, share_task([], run="../x"), "message-run"),
            "a sum in a path": (ADD, room.add_task(deliveries=(), run="a/b"), "message-run"),
            "survivors in a path": (CONFIRM, confirm_task(OWN, run="./x"), "message-run"),
            "secrets in a path": (UNMASK, unmask_task([], run="../x"), "message-run"),
            "a round that was not begun": (SHARE, share_task([]), "secure-sum-order"),
        }
    )
    assert room.ask(ROSTER, room.roster())  # the same once more, as after a crash
    assert charges(room) == 0


def test_a_round_is_begun_once_and_with_its_peers_only(
    room: Room, refused: Any, tmp_path: Path
) -> None:
    room.begin()
    adverts = room.collector.adverts()
    own, north, south, west = adverts
    stranger = SiteKeys.create(tmp_path / "stranger")
    keys = {"mask_key": south.mask_key[::-1], "sealing_key": south.sealing_key[::-1]}
    other_model = Party(
        room.terms(model_digest="0" * 64), site="north", sign=room.peers["north"].sign
    ).advertise()
    twice = signed(replace(north, mask_key=south.mask_key), room.peers["north"].sign)
    known = {
        "begun again": (ADVERTISE, room.advert_task(), "secure-sum-again"),
        "begun again with another model": (
            ADVERTISE,
            room.advert_task(model_digest="0" * 64),
            "secure-sum-again",
        ),
        "fewer than the threshold": (SHARE, share_task([own, north]), "secure-sum-threshold"),
        "nobody": (SHARE, share_task([]), "secure-sum-advert"),
        "without the own one": (SHARE, share_task([north, south, west]), "secure-sum-advert"),
        "one site twice": (SHARE, share_task([own, north, north]), "secure-sum-advert"),
        "exchanged keys": (
            SHARE,
            share_task([own, replace(north, **keys), south]),
            "secure-sum-signature",
        ),
        "keys of the server under a peer's name": (
            SHARE,
            share_task([own, signed(replace(north, **keys), stranger.sign), south]),
            "secure-sum-signature",
        ),
        "an invented site": (
            SHARE,
            share_task([own, north, signed(replace(north, site="zurich"), stranger.sign)]),
            "secure-sum-roster",
        ),
        "a peer that received another model": (
            SHARE,
            share_task([own, other_model, south]),
            "secure-sum-terms",
        ),
        "one key for two": (SHARE, share_task([own, twice, south]), "secure-sum-keys"),
        "no advert": (
            SHARE,
            to_record(ShareTask(run=RUN, round=1, adverts=({"site": 1},))),
            "secure-sum-message",
        ),
        "a later round": (SHARE, share_task(adverts, round=2), "secure-sum-order"),
        "a sum before any shares": (ADD, room.add_task(deliveries=()), "secure-sum-order"),
    }
    refused(known)
    room.ask(SHARE, share_task(adverts))
    refused({"shared again": (SHARE, share_task(adverts), "secure-sum-again")})
    assert charges(room) == 0


def test_a_sum_that_cannot_end_well_is_neither_charged_nor_computed(
    room: Room, refused: Any, federation: Any
) -> None:
    room.share()
    honest = [each.to_dict() for each in room.collector.deliveries_for(OWN)]
    own, north, south, west = honest
    name = sorted(room.weights)[0]
    other = {**room.weights, name: room.weights[name] + 1e-6}
    zeros = {key: torch.zeros_like(value) for key, value in room.weights.items()}
    weaker = replace(room.mechanism, noise_multiplier=room.sigma / 2)
    unsigned = json.loads(json.dumps(north))
    unsigned["dealing"]["signature"] = FLIPPED
    later = room.study.model_copy(update={"seed": 1})
    refused(
        {
            "a model that differs in one weight": (
                ADD,
                room.add_task(weights=other),
                "message-model",
            ),
            "a model of zeros": (ADD, room.add_task(weights=zeros), "message-model"),
            "no deliveries": (ADD, room.add_task(deliveries=()), "secure-sum-dealing"),
            "without the own dealing": (
                ADD,
                room.add_task(deliveries=(north, south, west)),
                "secure-sum-dealing",
            ),
            "fewer dealers than the threshold": (
                ADD,
                room.add_task(deliveries=(own, north)),
                "secure-sum-threshold",
            ),
            "one dealer twice": (
                ADD,
                room.add_task(deliveries=(own, north, north)),
                "secure-sum-dealing",
            ),
            "a dealing with another signature": (
                ADD,
                room.add_task(deliveries=(own, unsigned, south)),
                "secure-sum-signature",
            ),
            "no dealing": (ADD, room.add_task(deliveries=({},)), "secure-sum-message"),
            "less noise": (
                ADD,
                room.add_task(mechanism=weaker),
                "policy-noise-multiplier",
            ),
            "less noise that the policy allows": (
                ADD,
                room.add_task(
                    mechanism=replace(room.mechanism, noise_multiplier=room.sigma - 0.01)
                ),
                "policy-not-agreed",
            ),
            "another study": (ADD, room.add_task(study=later), "policy-not-agreed"),
            "a later round": (ADD, room.add_task(round=2), "secure-sum-order"),
            "another run": (ADD, room.add_task(run="second"), "secure-sum-order"),
            "survivors before the sum": (
                CONFIRM,
                confirm_task(OWN, "north", "south"),
                "secure-sum-order",
            ),
        }
    )
    assert charges(room) == 0
    room.ask(ADD, room.add_task())
    assert charges(room) == 1


def test_one_set_of_survivors_is_unmasked_and_nothing_of_the_round_is_left(
    room: Room, refused: Any, tmp_path: Path
) -> None:
    room.share()
    folder = room.hospital.sums_folder / RUN
    secrets = secrets_in(folder)
    room.collector.take_masked(masked_of(room.ask(ADD, room.add_task())))
    zeros = np.zeros(room.collector.terms.length, dtype=np.int64)
    for name, party in room.parties.items():
        if name != "west":  # who falls out after dealing
            room.collector.take_masked(party.mask(room.collector.deliveries_for(name), zeros))
    secrets |= secrets_in(folder)
    survivors = room.collector.survivors()
    assert survivors == (OWN, "north", "south")
    refused(
        {
            "added again": (ADD, room.add_task(), "secure-sum-again"),
            "added again under another name": (
                ADD,
                room.add_task(message_id="other"),
                "secure-sum-again",
            ),
            "too few": (CONFIRM, confirm_task(OWN, "north"), "secure-sum-threshold"),
            "nobody else": (CONFIRM, confirm_task(OWN), "secure-sum-threshold"),
            "without this site": (
                CONFIRM,
                confirm_task("north", "south", "west"),
                "secure-sum-survivors",
            ),
            "a stranger": (
                CONFIRM,
                confirm_task(OWN, "north", "zurich"),
                "secure-sum-survivors",
            ),
            "one site twice": (
                CONFIRM,
                confirm_task(OWN, "north", "north"),
                "secure-sum-survivors",
            ),
            "secrets before any set": (UNMASK, unmask_task([]), "secure-sum-order"),
        }
    )
    own = answer_of(room.ask(CONFIRM, confirm_task(*survivors)), Confirmation.from_dict)
    again = answer_of(room.ask(CONFIRM, confirm_task(*survivors)), Confirmation.from_dict)
    assert own.to_dict() == again.to_dict()
    north, south = (room.parties[name].confirm(survivors) for name in ("north", "south"))
    stranger = SiteKeys.create(tmp_path / "stranger")
    forged = signed(replace(south, signature=""), stranger.sign)
    others = signed(replace(south, survivors=(OWN, "south", "west")), room.peers["south"].sign)
    fallen = signed(replace(south, site="west"), room.peers["west"].sign)
    refused(
        {
            "two sets": (
                CONFIRM,
                confirm_task(OWN, "north", "west"),
                "secure-sum-again",
            ),
            "two sets, one inside the other": (
                CONFIRM,
                confirm_task(OWN, "north", "south", "west"),
                "secure-sum-again",
            ),
            "no confirmations": (UNMASK, unmask_task([]), "secure-sum-threshold"),
            "too few": (UNMASK, unmask_task([own, north]), "secure-sum-threshold"),
            "one of them twice": (
                UNMASK,
                unmask_task([own, north, north]),
                "secure-sum-threshold",
            ),
            "a forged one": (UNMASK, unmask_task([own, north, forged]), "secure-sum-signature"),
            "one of another set": (
                UNMASK,
                unmask_task([own, north, others]),
                "secure-sum-survivors",
            ),
            "one of a site that fell out": (
                UNMASK,
                unmask_task([own, north, fallen]),
                "secure-sum-survivors",
            ),
        }
    )
    for confirmation in (own, north, south):
        room.collector.take_confirmation(confirmation)
    confirmations = room.collector.confirmations()
    answer = room.ask(UNMASK, unmask_task(confirmations))
    room.collector.take_unmasking(answer_of(answer, Unmasking.from_dict))
    for name in ("north", "south"):
        room.collector.take_unmasking(room.parties[name].unmask(confirmations))
    total, _ = room.collector.total()  # of what the hospital alone has added
    share = room.mechanism.share_std / room.mechanism.grid
    assert float(np.std(total)) == pytest.approx(share, rel=0.1)

    refused(
        {
            "unmasked again": (UNMASK, unmask_task(confirmations), "secure-sum-order"),
            "another set once it is over": (
                CONFIRM,
                confirm_task(OWN, "north", "west"),
                "secure-sum-order",
            ),
            "the round once more": (ADVERTISE, room.advert_task(), "secure-sum-again"),
            "added once more": (ADD, room.add_task(), "secure-sum-order"),
        }
    )
    assert charges(room) == 1
    assert_kept_for_the_owner(folder, files={"roster.json", "round-0000001.state"})
    left = b"".join(files_of(Path(room.hospital.site.state)).values())
    assert len(secrets) >= 3 + 2 * len(room.members)
    assert not [secret for secret in secrets if secret in left]
    room.ask(ADVERTISE, room.advert_task(round=2))
    assert_kept_for_the_owner(folder, files={"roster.json", "round-0000002.state"})
    refused({"an older round": (ADVERTISE, room.advert_task(), "secure-sum-again")})


def secrets_in(folder: Path) -> set[bytes]:
    """All keys, seeds and shares that the state of a round holds, as they are written."""
    (file,) = folder.glob("*.state")
    state = json.loads(file.read_bytes().split(b"\n", 1)[1][32:])
    shares = [*state["seed_shares"].values(), *state["key_shares"].values()]
    found = [state["mask_key"], state["sealing_key"], state["seed"], *shares]
    return {secret.encode() for secret in found if secret}


def assert_kept_for_the_owner(folder: Path, *, files: set[str]) -> None:
    """No other file, and none that somebody else could read."""
    found = list(folder.iterdir())
    assert {path.name for path in found} == files
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}


def test_a_site_without_secure_sums_in_its_file_joins_none(federation: Any, wire: Any) -> None:
    hospital = federation.site_state(federation.hospital(OWN, weight=4.0))
    proposal = to_record(Proposal(study=federation.study(**STUDY), run=RUN, private=True))
    answer = federation.ask(hospital, proposal, kind="query")
    assert dict(answer.config_records["error"]) == {"code": "policy-trust"}
