"""One bad site of three: whatever it answers, the round goes on with the others.

What the bad site reports to have spent counts all the same, and what it sends has no effect at all:
the model is bit for bit the one that the two others make without it. The site signs whatever it
sends with its own key; what somebody changes on the way has no signature.
"""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from safetensors.torch import load_file

from medfl.errors import MessageError, QuorumError
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import (
    SiteUpdate,
    read_body,
    read_weights,
    refusal,
    to_record,
    weights_digest,
)

pytestmark = pytest.mark.slow

BAD = "north"
RUN = "screening"
ONE_ROUND: dict[str, Any] = {"training": {"rounds": 1}}

Weights = dict[str, np.ndarray]
Answer = Callable[[], Message]
Finished = Any  # of this folder's conftest


def arrays_of(message: Message) -> Weights:
    """Copies of the weights in a message, which can be changed."""
    return {k: np.array(v.numpy()) for k, v in message.content.array_records["arrays"].items()}


def with_arrays(change: Callable[[Weights], Mapping[str, Any]]) -> Callable[[Message], Message]:
    """A fault that changes the weights of an update; `Array` values are sent as they are."""

    def spoil(reply: Message) -> Message:
        changed = change(arrays_of(reply))
        reply.content["arrays"] = ArrayRecord(
            {k: v if isinstance(v, Array) else Array(np.asarray(v)) for k, v in changed.items()}
        )
        return reply

    return spoil


def with_body(**changes: Any) -> Callable[[Message], Message]:
    """A fault that changes what an update says of itself."""

    def spoil(reply: Message) -> Message:
        body = json.loads(reply.content.config_records["body"]["json"])
        text = json.dumps(merged(body, changes))
        reply.content["body"] = ConfigRecord({"json": text})
        return reply

    return spoil


def merged(body: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values replaced."""
    return {
        key: merged(value, changes[key])
        if isinstance(value, dict) and isinstance(changes.get(key), Mapping)
        else changes.get(key, value)
        for key, value in (body | {k: v for k, v in changes.items() if k not in body}).items()
    }


def first(weights: Weights) -> str:
    """A parameter of more than one axis."""
    return next(name for name, value in sorted(weights.items()) if value.ndim > 1)


def spoiled(change: Callable[[np.ndarray], Any]) -> Callable[[Message], Message]:
    """A fault in one parameter."""
    return with_arrays(lambda weights: weights | {first(weights): change(weights[first(weights)])})


def one_value(value: float) -> Callable[[Message], Message]:
    """A fault in a single number of all weights."""

    def change(array: np.ndarray) -> np.ndarray:
        array.flat[-1] = value
        return array

    return spoiled(change)


def forged(array: np.ndarray, **fields: Any) -> Array:
    """An array whose record says something else than its bytes."""
    sound = Array(array)
    values = {name: getattr(sound, name) for name in ("dtype", "shape", "stype", "data")}
    return Array(**{**values, **fields})


def numpy_file(header: dict[str, Any], data: bytes) -> bytes:
    """The bytes of a ``.npy`` file with any header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def header_bomb(array: np.ndarray) -> Array:
    """The record's shape fits the number of bytes; the file's own header wants 40 TB."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
    return forged(array, data=numpy_file(header, array.tobytes()))


def negative(array: np.ndarray) -> Array:
    """Both the record and the file's own header have axes of negative length."""
    shape = (-1, -array.size)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    return forged(array, shape=shape, data=numpy_file(header, array.tobytes()))


def pickled(array: np.ndarray) -> Array:
    """A file that would be unpickled, with as many bytes as the shape says."""
    header = {"descr": "|O", "fortran_order": False, "shape": array.shape}
    return forged(array, data=numpy_file(header, array.tobytes()))


def without_record(name: str) -> Callable[[Message], Message]:
    """A fault that leaves out a part of the answer."""

    def spoil(reply: Message) -> Message:
        del reply.content[name]
        return reply

    return spoil


def instead(content: RecordDict) -> Callable[[Message], Message]:
    """A fault that answers something else."""

    def spoil(reply: Message) -> Message:
        reply.content = content
        return reply

    return spoil


def body_text(text: str) -> Callable[[Message], Message]:
    """A fault that replaces the whole body."""

    def spoil(reply: Message) -> Message:
        reply.content["body"] = ConfigRecord({"json": text})
        return reply

    return spoil


def signed(reply: Message, keys: SiteKeys) -> Message:
    """The update as the bad site itself would send it, as far as it can be read."""
    try:
        update = read_body(reply.content, SiteUpdate)
    except MessageError:
        return reply
    try:
        digest = weights_digest(read_weights(reply.content))
    except MessageError:
        digest = update.weights_digest
    update = update.model_copy(update={"weights_digest": digest}).signed(keys)
    reply.content["body"] = to_record(update)["body"]
    return reply


class Recorded:
    """Honest answers by site and kind of message, and the keys of the bad site."""

    def __init__(self, answers: Mapping[tuple[str, str], RecordDict], *, keys: SiteKeys) -> None:
        self._answers = answers
        self.keys = keys

    def reply(self, site: str, message: Message) -> Message:
        content = self._answers[site, message.metadata.message_type]
        return Message(copy.deepcopy(content), reply_to=message)


# Fault, outcome, code, and whether the site's spending can be read from the answer.
FAULTS: dict[str, tuple[Callable[[Message], Message], str, str, bool]] = {
    "NaN": (one_value(math.nan), "rejected", "update-not-finite", True),
    "infinity": (one_value(math.inf), "rejected", "update-not-finite", True),
    "minus infinity": (one_value(-math.inf), "rejected", "update-not-finite", True),
    "huge norm": (one_value(1e9), "rejected", "update-norm", True),
    "norm that overflows": (one_value(3e38), "rejected", "update-norm", True),
    "other shape, same size": (
        spoiled(lambda a: a.reshape(-1)),
        "rejected",
        "update-shape",
        True,
    ),
    "shape that broadcasts": (
        spoiled(lambda a: a.reshape(-1)[:1]),
        "rejected",
        "update-shape",
        True,
    ),
    "scalar": (spoiled(lambda a: a.reshape(-1)[0]), "rejected", "update-shape", True),
    "extra leading axis": (spoiled(lambda a: a[None]), "rejected", "update-shape", True),
    "empty array": (spoiled(lambda a: a.reshape(-1)[:0]), "rejected", "update-shape", True),
    "float64": (spoiled(lambda a: a.astype(np.float64)), "rejected", "message-dtype", True),
    "float16": (spoiled(lambda a: a.astype(np.float16)), "rejected", "message-dtype", True),
    "int32": (spoiled(lambda a: a.astype(np.int32)), "rejected", "message-dtype", True),
    "big-endian": (spoiled(lambda a: a.astype(">f4")), "rejected", "message-dtype", True),
    "complex": (spoiled(lambda a: a.astype(np.complex64)), "rejected", "message-dtype", True),
    "float64 that says float32": (
        spoiled(lambda a: forged(a.astype(np.float64), dtype="float32")),
        "rejected",
        "message-shape",
        True,
    ),
    "int32 that says float32": (
        spoiled(lambda a: forged(a.astype(np.int32), dtype="float32")),
        "rejected",
        "message-shape",
        True,
    ),
    "declared larger than it is": (
        spoiled(lambda a: forged(a, shape=(10**10,))),
        "rejected",
        "message-shape",
        True,
    ),
    "declared other than it is, same size": (
        spoiled(lambda a: forged(a.reshape(-1), shape=a.shape)),
        "rejected",
        "message-shape",
        True,
    ),
    "negative shape": (
        spoiled(lambda a: forged(a, shape=(-1, -a.size))),
        "rejected",
        "message-shape",
        True,
    ),
    "negative shape, in the file as well": (
        spoiled(negative),
        "rejected",
        "message-shape",
        True,
    ),
    "header that asks for 40 TB": (spoiled(header_bomb), "rejected", "message-shape", True),
    "pickle": (spoiled(pickled), "rejected", "message-shape", True),
    "no numpy file": (
        spoiled(lambda a: forged(a, data=b"\0" * (a.nbytes + 128))),
        "rejected",
        "message-shape",
        True,
    ),
    "truncated": (
        spoiled(lambda a: forged(a, data=Array(a).data[:-4])),
        "rejected",
        "message-shape",
        True,
    ),
    "no numpy array": (
        spoiled(lambda a: forged(a, stype="torch.tensor")),
        "rejected",
        "message-dtype",
        True,
    ),
    "missing key": (
        with_arrays(lambda w: {k: v for k, v in w.items() if k != first(w)}),
        "rejected",
        "update-keys",
        True,
    ),
    "extra key": (
        with_arrays(lambda w: w | {"intruder": np.zeros(3, np.float32)}),
        "rejected",
        "update-keys",
        True,
    ),
    "renamed key": (
        with_arrays(lambda w: {k + "_" if k == first(w) else k: v for k, v in w.items()}),
        "rejected",
        "update-keys",
        True,
    ),
    "no arrays": (with_arrays(lambda _: {}), "rejected", "update-keys", True),
    "no array record": (without_record("arrays"), "rejected", "message-weights", True),
    "lie about its name": (with_body(site="east"), "rejected", "update-site", True),
    "other message": (with_body(message_id="tiny/9/north"), "rejected", "update-replayed", True),
    "less noise than agreed": (
        with_body(mechanism={"noise_multiplier": 0.01}),
        "rejected",
        "update-mechanism",
        True,
    ),
    "no noise": (
        with_body(mechanism={"noise_multiplier": 0.0}),
        "rejected",
        "update-mechanism",
        True,
    ),
    "more steps than agreed": (
        with_body(steps=7, run_steps=7),
        "rejected",
        "update-steps",
        True,
    ),
    "more steps than its ledger was charged for": (
        with_body(steps=7),
        "rejected",
        "ledger-rolled-back",
        True,
    ),
    "steps and noise that would stall an accountant": (
        with_body(steps=10**7, run_steps=10**6, mechanism={"noise_multiplier": 1e6}),
        "rejected",
        "ledger-rolled-back",
        True,
    ),
    "steps of the run that would stall an accountant": (
        with_body(run_steps=10**9),
        "rejected",
        "update-body",
        False,
    ),
    "negative steps": (with_body(steps=-1), "rejected", "update-body", False),
    "text for a number": (
        with_body(mechanism={"sampling_prob": "0.5"}),
        "rejected",
        "update-body",
        False,
    ),
    "nothing for a number": (
        with_body(mechanism={"clip_norm": None}),
        "rejected",
        "update-body",
        False,
    ),
    "mechanism without a key": (with_body(mechanism="none"), "rejected", "update-body", False),
    "unknown key in the body": (with_body(patients=["x"]), "rejected", "update-body", False),
    "infinite steps": (body_text('{"steps": Infinity}'), "rejected", "update-body", False),
    "no JSON": (body_text("{"), "rejected", "update-body", False),
    "deeply nested JSON": (body_text("[" * 100_000), "rejected", "update-body", False),
    "2 MB of text": (body_text(" " * 2_000_000), "rejected", "update-body", False),
    "no body": (without_record("body"), "rejected", "update-body", False),
    "nothing": (instead(RecordDict()), "rejected", "update-body", False),
    "100 KB of reasons": (instead(refusal("x" * 100_000)), "refused", "refusal-code", False),
    "control characters": (instead(refusal("\x1b[2J\n")), "refused", "refusal-code", False),
    "refusal without a code": (instead(refusal("")), "refused", "refusal-code", False),
    "refusal": (instead(refusal("budget-exceeded")), "refused", "budget-exceeded", False),
}


@pytest.fixture(scope="module")
def recorded(shared_federation: Any) -> Recorded:
    """What three honest sites answer in a round, so that each fault costs no training again."""
    answers: dict[tuple[str, str], RecordDict] = {}

    def keep(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        answers[site, message.metadata.message_type] = copy.deepcopy(reply.content)
        return reply

    study = shared_federation.study(**ONE_ROUND)
    sites = shared_federation.sites()
    finished = shared_federation.run(study, sites, name="honest", fault=keep, run_id=RUN)
    return Recorded(answers, keys=SiteKeys.read(finished.state(BAD) / "keys"))


@pytest.fixture(scope="module")
def without_north(shared_federation: Any, recorded: Recorded) -> Finished:
    """The run that the two sound sites make while the third is silent."""
    study = shared_federation.study(**ONE_ROUND, aggregation={"round_timeout_seconds": 0.01})

    def silent(site: str, message: Message, answer: Answer) -> Message | None:
        wanted = is_training(message) and site == BAD
        return None if wanted else recorded.reply(site, message)

    sites = shared_federation.sites()
    return shared_federation.run(study, sites, name="silent", fault=silent, run_id=RUN)


def is_training(message: Message) -> bool:
    return message.metadata.message_type == "train"


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_update_is_screened_and_the_round_goes_on(
    fault: str, federation: Any, recorded: Recorded, without_north: Finished
) -> None:
    spoil, outcome, code, readable = FAULTS[fault]

    def bad(site: str, message: Message, answer: Answer) -> Message:
        reply = recorded.reply(site, message)
        wanted = is_training(message) and site == BAD
        return signed(spoil(reply), recorded.keys) if wanted else reply

    study = federation.study(**ONE_ROUND)
    finished = federation.run(study, federation.sites(), fault=bad, run_id=RUN)
    assert finished.outcomes() == {
        "east": ("admitted", ""),
        "north": (outcome, code),
        "south": ("admitted", ""),
    }
    assert same(finished.weights, without_north.weights)
    events = [event for event in finished.folder.events() if event.site == BAD]
    epsilon = finished.folder.rounds()[0].sites[BAD].epsilon
    if code == "budget-exceeded":
        # The only answer that tells that nothing was charged.
        assert events == []
        assert epsilon == 0
    else:
        assert [event.admitted for event in events] == [False] * len(events)
        assert bool(events[0].statement) is readable
        assert float(epsilon) >= finished.folder.rounds()[0].sites["south"].epsilon


# Changes on the way, by somebody who does not have the site's key.
TAMPERED: dict[str, tuple[Callable[[Message], Message], str]] = {
    "one weight": (one_value(0.5), "update-digest"),
    "two weights exchanged": (with_arrays(lambda w: exchanged(w)), "update-digest"),
    "steps": (with_body(steps=7), "update-signature"),
    "noise": (with_body(mechanism={"noise_multiplier": 0.01}), "update-signature"),
    "ledger sequence": (with_body(ledger_sequence=99), "update-signature"),
    "ledger hash": (with_body(ledger_hash="0" * 64), "update-signature"),
    "steps of the run": (with_body(run_steps=99), "update-signature"),
    "name": (with_body(site="east"), "update-signature"),
    "digest of the weights": (with_body(weights_digest="0" * 64), "update-signature"),
    "no signature": (with_body(signature="0" * 128), "update-signature"),
}


def exchanged(weights: Weights) -> Weights:
    """Two parameters of one shape in each other's place."""
    names = sorted(weights)
    for one in names:
        for other in names:
            pair = weights[one], weights[other]
            if pair[0].shape == pair[1].shape and not np.array_equal(*pair):
                return weights | {one: pair[1], other: pair[0]}
    raise AssertionError("no two parameters of one shape")


@pytest.mark.parametrize("change", TAMPERED)
def test_what_was_changed_on_the_way_is_left_out_and_counts(
    change: str, federation: Any, recorded: Recorded, without_north: Finished
) -> None:
    tamper, code = TAMPERED[change]

    def on_the_way(site: str, message: Message, answer: Answer) -> Message:
        reply = recorded.reply(site, message)
        return tamper(reply) if is_training(message) and site == BAD else reply

    study = federation.study(**ONE_ROUND)
    finished = federation.run(study, federation.sites(), fault=on_the_way, run_id=RUN)
    assert finished.outcomes()[BAD] == ("rejected", code)
    assert same(finished.weights, without_north.weights)
    assert float(finished.folder.rounds()[0].sites[BAD].epsilon) > 0


def test_a_silent_site_is_waited_for_and_then_left_out(without_north: Finished) -> None:
    (record,) = without_north.folder.rounds()
    # Presumed to have paid as much as a site of the same plan that has answered.
    assert record.sites[BAD].model_dump() == {
        "outcome": "silent",
        "code": "silent",
        "epsilon": record.sites["south"].epsilon,
        "budget": 10.0,
        "steps": 0,
    }
    assert all(value.isfinite().all() for value in without_north.weights.values())


def test_a_failed_node_is_left_out_and_its_text_goes_nowhere(
    federation: Any, recorded: Recorded, without_north: Finished
) -> None:
    def fails(site: str, message: Message, answer: Answer) -> Message:
        if is_training(message) and site == BAD:
            return Message(Error(code=1, reason="No such file: BraTS2021_00002"), reply_to=message)
        return recorded.reply(site, message)

    study = federation.study(**ONE_ROUND)
    finished = federation.run(study, federation.sites(), fault=fails, run_id=RUN)
    assert finished.outcomes()[BAD] == ("refused", "node-error")
    assert same(finished.weights, without_north.weights)
    for file in finished.path.rglob("*"):
        if file.is_file() and "sites" not in file.parts:
            assert b"BraTS2021" not in file.read_bytes()


def test_an_update_of_an_earlier_round_is_not_taken_for_this_one(federation: Any) -> None:
    kept: dict[str, RecordDict] = {}

    def replays(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if is_training(message) and site == BAD:
            reply.content = kept.setdefault(site, reply.content)
        return reply

    finished = federation.run(federation.study(), federation.sites(), fault=replays)
    assert finished.outcomes(1)[BAD] == ("admitted", "")
    assert finished.outcomes(2)[BAD] == ("rejected", "update-replayed")
    assert finished.outcomes(2)["east"] == ("admitted", "")
    # Released once, counted once; what round 2 asked for never came, and it was paid for.
    events = [event for event in finished.folder.events() if event.site == BAD]
    assert [(e.round, bool(e.presumed)) for e in events] == [(1, False), (2, True)]
    assert finished.charges(BAD) == 2
    rounds = [line.sites for line in finished.folder.rounds()]
    assert rounds[1][BAD].epsilon == rounds[1]["south"].epsilon > rounds[0][BAD].epsilon


def test_an_update_of_another_run_is_not_taken_for_this_one(federation: Any) -> None:
    """A hospital has the same keys in every run, so that its signature alone says nothing."""
    hospitals = [federation.hospital(name) for name in ("east", "north", "south")]
    noise = {"privacy": {"noise": "operating-system", "epsilon": 3.0}}
    kept: dict[str, RecordDict] = {}

    def keeps(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if is_training(message) and site == BAD:
            kept[site] = copy.deepcopy(reply.content)
        return reply

    def replays(site: str, message: Message, answer: Answer) -> Message:
        if is_training(message) and site == BAD:
            return Message(kept[site], reply_to=message)
        return answer()

    first = federation.run(
        federation.study(**noise, **ONE_ROUND), hospitals, name="first", fault=keeps
    )
    assert first.outcomes()[BAD] == ("admitted", "")
    second = federation.run(
        federation.study(**noise, **ONE_ROUND, id="later"), hospitals, fault=replays, name="second"
    )
    assert second.outcomes() == {
        "east": ("admitted", ""),
        BAD: ("rejected", "update-replayed"),
        "south": ("admitted", ""),
    }


def test_an_update_that_repeats_a_ledger_sequence_is_counted_in_every_round(
    federation: Any,
) -> None:
    def stuck(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if not (is_training(message) and site == BAD):
            return reply
        keys = SiteKeys.read(federation.scratch / "run" / "sites" / BAD / "keys")
        return signed(with_body(ledger_sequence=4)(reply), keys)

    finished = federation.run(federation.study(), federation.sites(), fault=stuck)
    assert finished.outcomes(1)[BAD] == ("admitted", "")
    assert finished.outcomes(2)[BAD] == ("rejected", "ledger-rolled-back")
    rounds = [line.sites for line in finished.folder.rounds()]
    assert rounds[1][BAD].epsilon == rounds[1]["south"].epsilon > rounds[0][BAD].epsilon


def test_scores_under_another_sites_name_are_left_out(federation: Any) -> None:
    def lies(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        wanted = message.metadata.message_type == "evaluate" and site == BAD
        return with_body(site="east")(reply) if wanted else reply

    sites = federation.sites(privacy={"share_metrics": True})
    finished = federation.run(federation.study(**ONE_ROUND), sites, fault=lies)
    rows = finished.folder.scores()
    # One patient is held out at each of the two sites that are left.
    assert {row.site for row in rows} == {"east", "south"}
    assert len({row.patient for row in rows}) == 2


@pytest.mark.parametrize("weight", [-5.0, 0.0, 1e15, math.nan])
def test_a_weight_in_a_reply_is_never_believed(
    weight: float, federation: Any, shared_federation: Any, recorded: Recorded
) -> None:
    def boasts(site: str, message: Message, answer: Answer) -> Message:
        reply = recorded.reply(site, message)
        if is_training(message) and site == BAD:
            reply.content["metrics"] = MetricRecord({"num-examples": weight})
        return reply

    study = federation.study(**ONE_ROUND)
    finished = federation.run(study, federation.sites(), fault=boasts, run_id=RUN)
    honest = load_file(shared_federation.scratch / "honest/checkpoints/final.safetensors")
    assert same(finished.weights, honest)


def test_too_few_usable_updates_end_the_run_and_keep_what_was_spent(
    federation: Any, recorded: Recorded
) -> None:
    def bad(site: str, message: Message, answer: Answer) -> Message:
        reply = recorded.reply(site, message)
        wanted = is_training(message) and site != "east"
        return one_value(math.nan)(reply) if wanted else reply

    study = federation.study(**ONE_ROUND)
    with pytest.raises(QuorumError, match=r"Round 1: expected at least 2 .*found 1") as caught:
        federation.run(study, federation.sites(), fault=bad, run_id=RUN)
    assert caught.value.code == "quorum"
    assert "north: update-not-finite, south: update-not-finite" in str(caught.value)
    ledger = federation.scratch / "run" / "federation_ledger.jsonl"
    assert len(ledger.read_text().splitlines()) == 3
