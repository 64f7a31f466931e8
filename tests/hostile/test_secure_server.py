"""A hostile server of secure sums against a hospital's real app: it is refused, and pays nothing.

Three peers take part with keys of their own and an honest server of the protocol between them, so
that each question is wrong in one way only. For all of them alike: the answer is the code and
nothing else, the hospital's log holds one short line, nothing is charged or computed, and no file
of the hospital changes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import Proposal, TrainTask, to_record
from medfl.protocol.secure_round import (
    ADD,
    ADVERTISE,
    CONFIRM,
    ROSTER,
    SHARE,
    UNMASK,
    Member,
)
from tests.hostile.secure_room import (
    OWN,
    PEERS,
    RUN,
    STUDY,
    Case,
    Refused,
    Room,
    charges,
    confirm_task,
    make_refused,
    make_room,
    share_task,
    unmask_task,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def room(federation: Any, tmp_path: Path) -> Room:
    """A hospital that takes part in secure sums with three peers whose keys it has compared."""
    return make_room(federation, tmp_path)


@pytest.fixture
def refused(room: Room, wire: Any, monkeypatch: Any, caplog: Any) -> Refused:
    """Sends one message after the other and makes the same checks of each."""
    return make_refused(room, wire, monkeypatch, caplog)


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


def test_a_site_without_secure_sums_in_its_file_joins_none(federation: Any, wire: Any) -> None:
    hospital = federation.site_state(
        federation.hospital(OWN, weight=4.0, privacy={"trust": ["local"]})
    )
    proposal = to_record(Proposal(study=federation.study(**STUDY), run=RUN, private=True))
    answer = federation.ask(hospital, proposal, kind="query")
    assert dict(answer.config_records["error"]) == {"code": "policy-trust"}
