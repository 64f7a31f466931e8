"""Every message goes through Flower's records and comes back equal; anything else is refused."""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import array_shapes, arrays

from medfl.config.schedule import RoundSchedule
from medfl.errors import MessageError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import Rotation, SiteKeys
from medfl.protocol.messages import (
    Body,
    Declaration,
    EvaluateTask,
    PatientScore,
    Proposal,
    Scores,
    SiteUpdate,
    Statement,
    TrainTask,
    from_arrays,
    read_body,
    read_weights,
    refusal,
    refusal_code,
    to_arrays,
    to_record,
    weights_digest,
)

MECHANISM = Mechanism(
    sampling_prob=0.1,
    noise_multiplier=2.3456,
    clip_norm=0.3,
    clipping="normalised",
    local_steps=5,
    declared_patients=37,
    noise_origin="seeded",
)
HASH = "0123456789abcdef" * 4


def bodies(federation: Any) -> dict[str, Body]:
    study = federation.study(
        input={"spacing": [1.5, 1.5, 2.0]},
        synthetic={"shape": [32, 32, 24], "spacing": [5.0, 5.0, 6.0], "skull_stripped": True},
    )
    return {
        "proposal": Proposal(study=study, run="tiny-20250101-abc", private=True),
        "declaration": Declaration(
            site="DU",
            run="r",
            run_steps=0,
            event_key=HASH,
            rotations=(Rotation(old="a" * 64, new=HASH, signature="b" * 128),),
            purpose="hospital",
            declared_patients=37,
            weight=37.0,
            modalities=("t1n", "t2f"),
            label_scheme="lgg",
            delta=1e-5,
            epsilon_budget=8.0,
            epsilon=math.inf,
            mechanism=MECHANISM,
            ledger_sequence=4,
            ledger_hash=HASH,
            affected_steps=200,
        ),
        "task": TrainTask(study=study, run="r", round=3, message_id="r/3/DU", mechanism=MECHANISM),
        "update": SiteUpdate(
            site="DU",
            run="r",
            round=3,
            run_steps=15,
            weights_digest=HASH,
            message_id="r/3/DU",
            mechanism=MECHANISM,
            steps=5,
            ledger_sequence=9,
            ledger_hash=HASH,
        ),
        "evaluation": EvaluateTask(study=study, round=0, distances=False),
        "scores": Scores(
            site="DU",
            scores=(
                PatientScore(patient="0123456789abcdef", region="WT", dice=0.1 + 0.2, hd95_mm=None),
                PatientScore(patient="fedcba9876543210", region="ET", dice=1.0, hd95_mm=7.5),
            ),
        ),
    }


@pytest.mark.parametrize(
    "name", ["proposal", "declaration", "task", "update", "evaluation", "scores"]
)
def test_a_body_comes_back_equal(name: str, federation: Any) -> None:
    body = bodies(federation)[name]
    assert read_body(to_record(body), type(body)) == body


def test_a_declared_weight_has_an_upper_limit(federation: Any) -> None:
    declaration = bodies(federation)["declaration"]
    assert read_body(body_of(declaration, weight=1e6), Declaration).weight == 1e6


def test_a_study_keeps_its_digest_on_the_way(federation: Any) -> None:
    proposal = bodies(federation)["proposal"]
    assert isinstance(proposal, Proposal)
    assert read_body(to_record(proposal), Proposal).study.digest == proposal.study.digest


def body_of(body: Body, **changes: Any) -> RecordDict:
    values = json.loads(body.model_dump_json()) | changes
    return RecordDict({"body": ConfigRecord({"json": json.dumps(values)})})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("task", {"round": 0}),
        ("task", {"round": 1.5}),
        ("task", {"round": "1"}),
        ("task", {"round": True}),
        ("task", {"message_id": "a b"}),
        ("task", {"message_id": ""}),
        ("task", {"message_id": "x" * 201}),
        ("task", {"message_id": "r/3/DU\n"}),
        ("task", {"mechanism": None}),
        ("task", {"mechanism": {}}),
        ("task", {"mechanism": {**MECHANISM.to_dict(), "sampling_prob": "0.1"}}),
        ("task", {"mechanism": {**MECHANISM.to_dict(), "clip_norm": None}}),
        ("task", {"mechanism": {**MECHANISM.to_dict(), "noise_multiplier": math.nan}}),
        ("task", {"mechanism": {**MECHANISM.to_dict(), "noise_multiplier": -1.0}}),
        ("task", {"mechanism": {**MECHANISM.to_dict(), "clipping": []}}),
        ("task", {"study": {}}),
        ("task", {"extra": 1}),
        ("update", {"steps": 0}),
        ("update", {"ledger_sequence": -1}),
        ("update", {"ledger_hash": HASH[:-1]}),
        ("update", {"site": "a/b"}),
        ("update", {"run_steps": -1}),
        ("update", {"run_steps": 1_000_001}),
        ("declaration", {"run_steps": 1_000_001}),
        ("update", {"run": ""}),
        ("update", {"round": 0}),
        ("update", {"weights_digest": HASH[:-1] + "g"}),
        ("update", {"signature": "0" * 127}),
        ("declaration", {"event_key": HASH + "0"}),
        ("declaration", {"rotations": [{"old": HASH, "new": HASH}]}),
        ("declaration", {"rotations": [{"old": 1, "new": HASH, "signature": ""}]}),
        ("declaration", {"weight": 1.1e6}),
        ("scores", {"scores": [{"patient": "Mueller, Anna", "region": "WT", "dice": 0.5}]}),
        ("evaluation", {"round": -1}),
        ("proposal", {"private": "yes"}),
    ],
)
def test_a_body_that_breaks_a_rule_is_refused(
    name: str, changes: dict[str, Any], federation: Any
) -> None:
    body = bodies(federation)[name]
    with pytest.raises(MessageError) as caught:
        read_body(body_of(body, **changes), type(body))
    assert caught.value.code == "message-body"


@pytest.mark.parametrize("dice", [-0.01, 1.01, math.nan, math.inf])
def test_a_score_outside_its_range_is_refused(dice: float) -> None:
    score = {"patient": "0123456789abcdef", "region": "WT", "dice": dice, "hd95_mm": None}
    text = json.dumps({"site": "DU", "scores": [score]})
    with pytest.raises(MessageError):
        read_body(RecordDict({"body": ConfigRecord({"json": text})}), Scores)


def test_the_refusal_of_a_body_does_not_repeat_what_was_in_it() -> None:
    text = json.dumps({"site": "BraTS2021_00002 of Anna"})
    with pytest.raises(MessageError) as caught:
        read_body(RecordDict({"body": ConfigRecord({"json": text})}), Scores)
    assert "Anna" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"body": ConfigRecord({})}),
        RecordDict({"body": ConfigRecord({"json": 5})}),
        RecordDict({"body": ConfigRecord({"json": b"{}"})}),
        RecordDict({"body": ConfigRecord({"json": "x" * 1_000_001})}),
        RecordDict({"body": ArrayRecord({})}),
    ],
)
def test_a_record_without_a_readable_body_is_refused(record: RecordDict) -> None:
    with pytest.raises(MessageError):
        read_body(record, Scores)


@given(
    values=arrays(
        np.float32, array_shapes(min_dims=0, max_dims=5, max_side=4), elements=some.floats(width=32)
    )
)
def test_weights_come_back_bit_for_bit(values: np.ndarray) -> None:
    tensor = torch.from_numpy(np.array(values))
    found = from_arrays(to_arrays({"w": tensor}))["w"]
    assert found.shape == tensor.shape
    assert found.numpy().tobytes() == values.tobytes()


def test_weights_are_sent_in_the_order_of_their_names_and_are_copies() -> None:
    weights = {"b": torch.ones(2), "a": torch.zeros(3)}
    record = to_arrays(weights)
    assert list(record) == ["a", "b"]
    found = from_arrays(record)
    found["b"].add_(1.0)
    assert torch.equal(weights["b"], torch.ones(2))
    assert torch.equal(from_arrays(record)["b"], torch.ones(2))


def test_a_tensor_in_another_memory_layout_comes_back_equal() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    found = from_arrays(to_arrays({"t": tensor, "f": torch.arange(6.0).reshape(2, 3).t()}))
    assert torch.equal(found["t"], tensor)
    assert torch.equal(found["f"], torch.arange(6.0).reshape(2, 3).t())


def test_a_message_without_weights_is_refused(federation: Any) -> None:
    with pytest.raises(MessageError) as caught:
        read_weights(to_record(bodies(federation)["task"]))
    assert caught.value.code == "message-weights"


@given(content=some.binary(max_size=300), size=some.integers(0, 40))
def test_any_bytes_are_read_as_weights_or_refused(content: bytes, size: int) -> None:
    array = Array(dtype="float32", shape=(size,), stype="numpy.ndarray", data=content)
    with pytest.raises(MessageError):
        from_arrays(ArrayRecord({"w": array}))


@given(
    header=some.text(
        alphabet="{}()[],:'\"<f4descr fortran_order shape True False -1234567890 \\x00\n",
        max_size=110,
    )
)
def test_any_header_of_a_numpy_file_is_read_or_refused(header: str) -> None:
    text = header.encode().ljust(118) + b"\n"
    file = io.BytesIO()
    file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8))
    array = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=file.getvalue())
    try:
        found = from_arrays(ArrayRecord({"w": array}))["w"]
    except MessageError:
        return
    assert found.shape == (2,)


@pytest.mark.parametrize("depth", [50, 2000])
def test_a_deeply_nested_header_is_refused(depth: int) -> None:
    text = ("(" * depth).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    shape = (max(0, (len(content) - 20) // 4),)
    array = Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=content)
    with pytest.raises(MessageError):
        from_arrays(ArrayRecord({"w": array}))


def test_a_refusal_holds_its_code_and_nothing_else() -> None:
    record = refusal("budget-exceeded")
    assert refusal_code(record) == "budget-exceeded"
    assert list(record) == ["error"]
    assert dict(record.config_records["error"]) == {"code": "budget-exceeded"}


def test_an_answer_is_no_refusal(federation: Any) -> None:
    assert refusal_code(to_record(bodies(federation)["update"])) == ""


@pytest.mark.parametrize(
    "code", ["", "-", "a b", "a_b", "a/b", "a\n", "x" * 41, 7, b"code", ["budget"], None]
)
def test_a_code_that_is_no_short_word_is_refused(code: Any) -> None:
    content = {} if code is None else {"code": code}
    with pytest.raises(MessageError) as caught:
        refusal_code(RecordDict({"error": ConfigRecord(content)}))
    assert caught.value.code == "refusal-code"


# --- statements


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    return SiteKeys.create(tmp_path_factory.mktemp("keys") / "DU")


# What is signed of each kind, changed to something else that its schema allows.
DECLARED: dict[str, Any] = {
    "site": "HT",
    "run": "s",
    "ledger_sequence": 5,
    "ledger_hash": "f" * 64,
    "run_steps": 1,
    "purpose": "open-data",
    "declared_patients": 38,
    "weight": 38.0,
    "modalities": ("t2f", "t1n"),
    "label_scheme": "brats",
    "delta": 1.0000000000000002e-5,
    "epsilon_budget": 9.0,
    "epsilon": 7.0,
    "mechanism": Mechanism(**{**MECHANISM.to_dict(), "noise_multiplier": 2.3457}),
    "event_key": "f" * 64,
    "rotations": (),
    "affected_steps": 1,
}
UPDATED: dict[str, Any] = {
    "site": "HT",
    "run": "s",
    "ledger_sequence": 5,
    "ledger_hash": "f" * 64,
    "run_steps": 16,
    "round": 4,
    "message_id": "r/4/DU",
    "mechanism": Mechanism(**{**MECHANISM.to_dict(), "declared_patients": 38}),
    "steps": 6,
    "weights_digest": "f" * 64,
}


def test_a_statement_is_signed_by_its_site_and_nobody_else(
    federation: Any, keys: SiteKeys, tmp_path: Path
) -> None:
    stranger = SiteKeys.create(tmp_path / "keys")
    for name in ("declaration", "update"):
        statement = bodies(federation)[name]
        assert isinstance(statement, Statement)
        assert not statement.is_signed_by(keys.event_key)
        signed = statement.signed(keys)
        arrived = read_body(to_record(signed), type(signed))
        assert arrived.is_signed_by(keys.event_key)
        assert not arrived.is_signed_by(stranger.event_key)


@pytest.mark.parametrize(
    ("name", "field"),
    [*(("declaration", field) for field in DECLARED), *(("update", field) for field in UPDATED)],
)
def test_a_changed_field_breaks_the_signature(
    name: str, field: str, federation: Any, keys: SiteKeys
) -> None:
    statement = bodies(federation)[name]
    assert isinstance(statement, Statement)
    signed = statement.signed(keys)
    new = (DECLARED if name == "declaration" else UPDATED)[field]
    assert new != getattr(signed, field)
    assert not signed.model_copy(update={field: new}).is_signed_by(keys.event_key)


def test_a_schedule_is_signed_and_stands_in_no_statement_without_one(
    federation: Any, keys: SiteKeys
) -> None:
    plain = bodies(federation)["declaration"]
    assert isinstance(plain, Declaration)
    # Signatures of statements from before there were schedules cover these words.
    assert "clip_norm_schedule" not in plain.model_dump_json()
    courses = [
        RoundSchedule(shape="linear", warmup_rounds=0, final_fraction=final, rounds=9)
        for final in (0.5, 0.25)
    ]
    whole, other = (replace(MECHANISM, clip_norm_schedule=course) for course in courses)
    signed = plain.model_copy(update={"mechanism": whole}).signed(keys)
    assert read_body(to_record(signed), Declaration) == signed
    assert signed.is_signed_by(keys.event_key)
    for changed in (other, MECHANISM):
        forged = signed.model_copy(update={"mechanism": changed})
        assert not forged.is_signed_by(keys.event_key)


def test_every_field_of_a_statement_is_signed() -> None:
    assert {*DECLARED, "signature"} == set(Declaration.model_fields)
    assert {*UPDATED, "signature"} == set(SiteUpdate.model_fields)


def test_a_signature_counts_for_one_kind_of_statement_only(keys: SiteKeys) -> None:
    values: dict[str, Any] = {
        "site": "DU",
        "run": "r",
        "ledger_sequence": 1,
        "ledger_hash": HASH,
        "run_steps": 0,
    }
    # Equal in every field; only the kind differs.
    general = Statement(**values).signed(keys)
    special = Twin(**values, signature=general.signature)
    assert special.model_dump() == general.model_dump()
    assert general.is_signed_by(keys.event_key)
    assert not special.is_signed_by(keys.event_key)
    assert special.signed(keys).is_signed_by(keys.event_key)


class Twin(Statement):
    """A statement of another kind with the same fields."""


def test_a_declarations_signature_does_not_pass_for_an_updates(
    federation: Any, keys: SiteKeys
) -> None:
    declaration, update = (bodies(federation)[name] for name in ("declaration", "update"))
    assert isinstance(declaration, Declaration)
    assert isinstance(update, SiteUpdate)
    signature = declaration.signed(keys).signature
    forged = update.model_copy(update={"signature": signature})
    assert not forged.is_signed_by(keys.event_key)


def test_weights_have_a_digest_of_names_and_values() -> None:
    weights = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[0.5]])}
    content = b"a\0" + struct.pack("<f", 0.5) + b"b\0" + struct.pack("<ff", 1.0, 2.0)
    assert weights_digest(weights) == hashlib.sha256(content).hexdigest()
    assert weights_digest({"c": weights["b"], "a": weights["a"]}) != weights_digest(weights)
    changed = weights | {"a": torch.tensor([[0.25]])}
    assert weights_digest(changed) != weights_digest(weights)


def test_the_digest_does_not_depend_on_the_memory_layout() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    turned = tensor.t().contiguous().t()
    assert not turned.is_contiguous()
    assert weights_digest({"w": turned}) == weights_digest({"w": tensor})
