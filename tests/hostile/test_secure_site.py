"""A hostile or broken site in a secure sum: it is left out with a code, or spoils nothing.

Each case runs through the real server app. The model is bit for bit what it is where that site is
silent in the same phase, or what it is where it is honest if its vector was in the sum by then; and
the server counts at least what the site's ledger was charged for.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from medfl.errors import QuorumError
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import SiteUpdate, read_body, refusal
from medfl.protocol.secure_round import (
    ADD,
    ADVERTISE,
    CONFIRM,
    SHARE,
    UNMASK,
    answer_of,
    answer_record,
    masked_of,
    masked_record,
)
from medfl.secure_sum.messages import (
    Advert,
    Confirmation,
    MaskedInput,
    SealedShares,
    Unmasking,
    signed,
)
from medfl.server.ledger import FederationLedger
from tests.federations import Federation, Finished
from tests.study.test_secure_sums import secure, silent, sites_of, steps

pytestmark = pytest.mark.slow

BAD = "north"
RUN = "hostile-sum"

Change = Callable[[RecordDict, SiteKeys], RecordDict]
"""What the site answers instead of this, signed with its own keys."""


def resent(content: RecordDict, keys: SiteKeys, **changes: Any) -> RecordDict:
    """A masked vector and its statement with some values replaced, signed again."""
    masked, update = masked_of(content), read_body(content, SiteUpdate)
    if changes.keys() & MaskedInput.__dataclass_fields__.keys():
        ours = {name: changes.pop(name) for name in ("vector", "dealers") if name in changes}
        masked = signed(replace(masked, **ours), keys.sign)
    digest = hashlib.sha256(masked.vector).hexdigest()
    update = update.model_copy(update={"weights_digest": digest, **changes})
    return masked_record(update.signed(keys), masked)


def cut(content: RecordDict, keys: SiteKeys) -> RecordDict:
    """A vector that lacks an integer."""
    return resent(content, keys, vector=masked_of(content).vector[:-4])


def longer(content: RecordDict, keys: SiteKeys) -> RecordDict:
    """A vector with an integer too many."""
    return resent(content, keys, vector=masked_of(content).vector + bytes(4))


def garbage(content: RecordDict, keys: SiteKeys) -> RecordDict:
    """Zeros where masks should be, so that the sum is what its masks were."""
    return resent(content, keys, vector=bytes(len(masked_of(content).vector)))


def floats(content: RecordDict, _: SiteKeys) -> RecordDict:
    """Another type."""
    content["masked"] = ArrayRecord({"vector": Array(np.zeros(100, dtype=np.float32))})
    return content


def nothing(content: RecordDict, _: SiteKeys) -> RecordDict:
    """A statement without a vector."""
    del content["masked"]
    return content


def unsigned(content: RecordDict, _: SiteKeys) -> RecordDict:
    """A vector that somebody else has signed."""
    return masked_record(
        read_body(content, SiteUpdate), replace(masked_of(content), signature="f" * 128)
    )


def less_noise(content: RecordDict, keys: SiteKeys) -> RecordDict:
    """Another mechanism than was agreed."""
    mechanism = read_body(content, SiteUpdate).mechanism
    return resent(content, keys, mechanism=replace(mechanism, noise_multiplier=0.01))


def unreadable(content: RecordDict, _: SiteKeys) -> RecordDict:
    """No statement."""
    content["body"] = ConfigRecord({"json": "{}"})
    return content


def foreign(content: RecordDict, keys: SiteKeys) -> RecordDict:
    """A statement that somebody else has signed."""
    update = read_body(content, SiteUpdate)
    return masked_record(update.model_copy(update={"signature": "f" * 128}), masked_of(content))


# What the site does when it is asked to add to the sum, and the code with which it is left out.
ADDED: dict[str, tuple[Change, str]] = {
    "a vector that is too short": (cut, "secure-sum-length"),
    "a vector that is too long": (longer, "secure-sum-length"),
    "a vector of floats": (floats, "secure-sum-message"),
    "no vector": (nothing, "secure-sum-message"),
    "a vector that is not signed": (unsigned, "secure-sum-signature"),
    "a vector under other masks": (
        lambda content, keys: resent(content, keys, dealers="0" * 64),
        "secure-sum-transcript",
    ),
    "the digest of another vector": (
        lambda content, keys: resent(content, keys, weights_digest="0" * 64),
        "update-digest",
    ),
    "another mechanism": (less_noise, "update-mechanism"),
    "more steps": (
        lambda content, keys: resent(content, keys, steps=7, run_steps=7),
        "update-steps",
    ),
    "a ledger that forgot the round": (
        lambda content, keys: resent(content, keys, run_steps=0),
        "ledger-rolled-back",
    ),
    "no statement": (unreadable, "update-body"),
    "a statement that is not signed": (foreign, "update-signature"),
}


@pytest.fixture(scope="module")
def without_bad(shared_federation: Federation) -> Finished:
    """The run in which the site is silent when it is asked to add."""
    return one_round(shared_federation, silent(BAD, ADD), name="sum-without")


@pytest.fixture(scope="module")
def with_all(shared_federation: Federation) -> Finished:
    """The run in which everybody is honest."""
    return one_round(shared_federation, lambda _, __, answer: answer(), name="sum-honest")


def one_round(
    federation: Federation, fault: Any, *, rounds: int = 1, name: str = "run"
) -> Finished:
    """A short run."""
    study = secure(federation, training={"rounds": rounds})
    return federation.run(study, sites_of(federation), name=name, fault=fault, run_id=RUN)


def spoilt(
    federation: Federation, kind: str, change: Change, *, round_number: int = 1
) -> Callable[[str, Message, Callable[[], Message]], Message]:
    """The site answers one question of one round in its own way."""

    def fault(site: str, message: Message, answer: Callable[[], Message]) -> Message:
        reply = answer()
        asked = (site, message.metadata.message_type, message.metadata.group_id)
        if asked == (BAD, kind, str(round_number)):
            keys = SiteKeys.read(federation.scratch / "run" / "sites" / BAD / "keys")
            reply.content = change(reply.content, keys)
        return reply

    return fault


def assert_same_model(finished: Finished, other: Finished) -> None:
    mine, others = finished.weights, other.weights
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def assert_counted(finished: Finished, *, steps_of_bad: int) -> None:
    """What the ledgers were charged for, and at least as much at the server."""
    ledger = FederationLedger(finished.folder)
    for site in ("east", BAD, "south"):
        counted = sum(charge.steps for charge in ledger.charges(site))
        assert counted >= steps(finished, site)
    assert steps(finished, BAD) == steps_of_bad


@contextmanager
def quiet(wire: Any, caplog: pytest.LogCaptureFixture, path: Path) -> Iterator[None]:
    """Nothing that a site says in words is in the log or in the run folder."""
    yield
    # The sites are real apps, which say that they share no scores.
    assert {line.split(":")[0] for line in wire.lines_of_medfl(caplog)} == {
        "Refused with code policy-metrics"
    }
    assert not [file for file in path.glob("*.json*") if wire.mark.encode() in file.read_bytes()]


@pytest.mark.parametrize("case", ADDED)
def test_a_site_that_adds_what_it_may_not_is_left_out_and_counted(
    case: str, federation: Federation, without_bad: Finished, wire: Any, caplog: Any
) -> None:
    change, code = ADDED[case]
    with quiet(wire, caplog, federation.scratch / "run"):
        finished = one_round(federation, spoilt(federation, ADD, change))
    outcomes = finished.outcomes()
    assert outcomes[BAD] == ("rejected", code)
    assert outcomes["east"] == outcomes["south"] == ("admitted", "")
    (event,) = [event for event in finished.folder.events() if event.site == BAD]
    assert not event.admitted
    sites = finished.folder.rounds()[0].sites
    assert float(sites[BAD].epsilon) >= float(sites["south"].epsilon) > 0
    assert_counted(finished, steps_of_bad=1)
    assert_same_model(finished, without_bad)


def test_a_site_that_sends_what_another_one_sent_is_left_out(
    federation: Federation, without_bad: Finished
) -> None:
    sent: dict[str, RecordDict] = {}

    def fault(site: str, message: Message, answer: Callable[[], Message]) -> Message:
        reply = answer()
        if message.metadata.message_type == ADD:
            sent[site] = copy.deepcopy(reply.content)
            if site == BAD:
                reply.content = copy.deepcopy(sent["east"])
        return reply

    finished = one_round(federation, fault)
    assert finished.outcomes()[BAD][1] == "update-site"
    assert finished.outcomes()["east"] == ("admitted", "")
    assert_counted(finished, steps_of_bad=1)
    assert_same_model(finished, without_bad)


def test_an_answer_to_the_round_before_is_left_out_and_this_round_is_counted(
    federation: Federation,
) -> None:
    kept: list[RecordDict] = []

    def again(site: str, message: Message, answer: Callable[[], Message]) -> Message:
        reply = answer()
        if (site, message.metadata.message_type) == (BAD, ADD):
            kept.append(copy.deepcopy(reply.content))
            reply.content = copy.deepcopy(kept[0])
        return reply

    def silent_later(site: str, message: Message, answer: Callable[[], Message]) -> Message | None:
        second = message.metadata.group_id == "2"
        return silent(BAD, ADD)(site, message, answer) if second else answer()

    other = one_round(federation, silent_later, rounds=2, name="other")
    finished = one_round(federation, again, rounds=2)
    assert len(kept) == 2
    assert finished.outcomes(1)[BAD] == ("admitted", "")
    assert finished.outcomes(2)[BAD][1] == "update-replayed"
    assert_counted(finished, steps_of_bad=2)
    assert_same_model(finished, other)


def test_garbage_is_noticed_in_the_sum_which_nobody_gets_and_everybody_pays_for(
    federation: Federation,
) -> None:
    with pytest.raises(QuorumError, match="secure-sum-range"):
        one_round(federation, spoilt(federation, ADD, garbage))
    finished = Finished(path=federation.scratch / "run")
    events = finished.folder.events()
    assert [event.site for event in events] == ["east", BAD, "south"]
    assert not [event for event in events if event.admitted]
    assert_counted(finished, steps_of_bad=1)
    assert not (finished.path / "checkpoints" / "final.safetensors").exists()


def forged_set(content: RecordDict, keys: SiteKeys) -> RecordDict:
    """A set of survivors without one that is in the sum."""
    said = answer_of(content, Confirmation.from_dict)
    return answer_record(signed(replace(said, survivors=(BAD, "south")), keys.sign).to_dict())


def forged_share(content: RecordDict, keys: SiteKeys) -> RecordDict:
    """A share that its dealer has not dealt."""
    said = answer_of(content, Unmasking.from_dict)
    seeds = {**said.seeds, "east": said.seeds["south"]}
    return answer_record(signed(replace(said, seeds=seeds), keys.sign).to_dict())


@pytest.mark.parametrize(("kind", "change"), [(CONFIRM, forged_set), (UNMASK, forged_share)])
def test_lies_about_a_sum_that_it_is_in_change_nothing(
    kind: str, change: Change, federation: Federation, with_all: Finished
) -> None:
    finished = one_round(federation, spoilt(federation, kind, change))
    assert finished.outcomes() == dict.fromkeys(("east", BAD, "south"), ("admitted", ""))
    assert_counted(finished, steps_of_bad=1)
    assert_same_model(finished, with_all)


def other_keys(content: RecordDict, _: SiteKeys) -> RecordDict:
    """Keys that the site has not signed."""
    said = answer_of(content, Advert.from_dict)
    return answer_record(replace(said, mask_key=said.mask_key[::-1]).to_dict())


def too_few_shares(content: RecordDict, _: SiteKeys) -> RecordDict:
    """Nothing for one of the others."""
    said = answer_of(content, SealedShares.from_dict)
    sealed = {name: share for name, share in said.sealed.items() if name != "east"}
    return answer_record(replace(said, sealed=sealed).to_dict())


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        (ADVERTISE, other_keys, "secure-sum-signature"),
        (ADVERTISE, lambda *_: answer_record({"site": BAD}), "secure-sum-message"),
        (SHARE, too_few_shares, "secure-sum-dealing"),
    ],
    ids=["other keys", "no keys", "too few shares"],
)
def test_who_falls_out_before_the_sum_is_not_charged(
    kind: str, change: Change, code: str, federation: Federation, without_bad: Finished
) -> None:
    finished = one_round(federation, spoilt(federation, kind, change))
    assert finished.outcomes()[BAD] == ("rejected", code)
    assert not [event for event in finished.folder.events() if event.site == BAD]
    assert_counted(finished, steps_of_bad=0)
    assert_same_model(finished, without_bad)


@pytest.mark.parametrize(("kind", "steps_of_bad"), [(ADVERTISE, 0), (ADD, 1)])
def test_a_site_that_refuses_is_told_from_one_whose_answer_was_refused(
    kind: str, steps_of_bad: int, federation: Federation, without_bad: Finished
) -> None:
    refused = spoilt(federation, kind, lambda *_: refusal("disk"))
    finished = one_round(federation, refused)
    assert finished.outcomes()[BAD] == ("refused", "disk")
    # Of a site that was asked to add the server does not believe that it spent nothing.
    assert_counted(finished, steps_of_bad=steps_of_bad)
    assert_same_model(finished, without_bad)
