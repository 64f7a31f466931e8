"""A hostile server in the rounds of secure sums: a hospital answers once, and to its peers only.

The checks are those of `test_secure_server`.
"""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import to_record
from medfl.protocol.secure_round import (
    ADD,
    ADVERTISE,
    CONFIRM,
    SHARE,
    UNMASK,
    ShareTask,
    answer_of,
    masked_of,
)
from medfl.secure_sum.messages import Confirmation, Unmasking, signed
from medfl.secure_sum.party import Party
from medfl.site.state_folder import SUMS
from tests.hostile.secure_room import (
    OWN,
    RUN,
    Refused,
    Room,
    charges,
    confirm_task,
    files_of,
    make_refused,
    make_room,
    share_task,
    unmask_task,
)

pytestmark = pytest.mark.slow

FLIPPED = "f" * 128


@pytest.fixture
def room(federation: Any, tmp_path: Path) -> Room:
    """A hospital that takes part in secure sums with three peers whose keys it has compared."""
    return make_room(federation, tmp_path)


@pytest.fixture
def refused(room: Room, wire: Any, monkeypatch: Any, caplog: Any) -> Refused:
    """Sends one message after the other and makes the same checks of each."""
    return make_refused(room, wire, monkeypatch, caplog)


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
    folder = room.hospital.folder / SUMS / RUN
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
    assert_kept_for_the_owner(folder, files={"lock", "roster.json", "round-0000001.state"})
    left = b"".join(files_of(Path(room.hospital.site.state)).values())
    assert len(secrets) >= 3 + 2 * len(room.members)
    assert not [secret for secret in secrets if secret in left]
    room.ask(ADVERTISE, room.advert_task(round=2))
    assert_kept_for_the_owner(folder, files={"lock", "roster.json", "round-0000002.state"})
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
