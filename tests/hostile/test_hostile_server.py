"""A hostile server, case by case: what it asks is refused with a code, and costs nothing.

Each case is sent by a real ServerApp to a hospital's real app. For all of them alike: the answer is
the code and nothing else, the hospital's log holds one short line, nothing that names a patient or
a folder leaves, nothing is charged, and nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from medfl.protocol import messages
from medfl.protocol.messages import Declaration, Proposal, TrainTask, read_body, to_record
from medfl.segmentation.networks import trainable_state

pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {"privacy": {"noise": "operating-system", "epsilon": 1.0}}
POLICY: dict[str, Any] = {
    "min_noise_multiplier": 1.0,
    "max_clip_norm": 1.0,
    "max_sampling_prob": 0.5,
    "max_local_steps": 2,
    "max_rounds": 5,
}
RUN = "first"

# Kind of message, what is changed in its body, and the code of the refusal. A proposal comes before
# any agreement, a task after it; "answered" is a task whose honest form was answered before, and
# "agreed" a proposal for a run that was agreed to.
Case = tuple[str, Mapping[str, Any], str]
CASES: dict[str, Case] = {
    # Each weakening of the site's rules.
    "noise below the floor": (
        "train",
        {"mechanism": {"noise_multiplier": 0.99}},
        "policy-noise-multiplier",
    ),
    "clip norm above the cap": (
        "query",
        {"study": {"privacy": {"clip_norm": 1.01}}},
        "policy-clip-norm",
    ),
    "sampling probability above the cap": (
        "query",
        {"study": {"privacy": {"sampling_prob": 0.51}}},
        "policy-sampling-prob",
    ),
    "steps above the cap": (
        "query",
        {"study": {"training": {"local_steps": 3}}},
        "policy-local-steps",
    ),
    "rounds that would stall a planner": (
        "query",
        {"study": {"training": {"rounds": 10**6}}},
        "policy-rounds",
    ),
    "a delta of its own": ("train", {"mechanism": {"delta": 0.1}}, "message-body"),
    "an unknown key": ("query", {"policy": {"max_rounds": 1000}}, "message-body"),
    "DP off": ("query", {"private": False}, "policy-noise"),
    "Poisson off": ("query", {"study": {"privacy": {"poisson": False}}}, "message-body"),
    "seeded noise": ("query", {"study": {"privacy": {"noise": "seeded"}}}, "policy-seeded"),
    # Paths in the study's configuration.
    "path traversal": ("query", {"study": {"id": "../../state/east"}}, "message-body"),
    "absolute path": (
        "query",
        {"study": {"network": {"arguments": {"pretrained": "/etc/passwd"}}}},
        "model",
    ),
    "symlink": ("query", {"study": {"network": {"name": "{symlink}"}}}, "model"),
    # Order and kind of messages.
    "replay": ("answered", {"round": 2}, "message-replayed"),
    "round jump": ("train", {"round": 10**7}, "policy-rounds"),
    "round beyond any study": ("train", {"round": 10**9}, "message-body"),
    "unknown message": ("train.secretly", {}, "message-kind"),
    "message of another kind": ("query", {"round": 1}, "message-body"),
    # Numbers of patients.
    "n negative": ("train", {"mechanism": {"declared_patients": -1}}, "message-body"),
    "n zero": ("train", {"mechanism": {"declared_patients": 0}}, "message-body"),
    "n NaN": ("train", {"mechanism": {"declared_patients": math.nan}}, "message-body"),
    "n 10^7": (
        "train",
        {"mechanism": {"declared_patients": 10**7}},
        "policy-declared-patients",
    ),
    "n 10^15": ("train", {"mechanism": {"declared_patients": 10**15}}, "message-body"),
    "a clip norm in the denormals": ("train", {"mechanism": {"clip_norm": 7e-46}}, "message-body"),
    # Epsilon.
    "epsilon that does not match": (
        "train",
        {"mechanism": {"noise_multiplier": 1.0}},
        "policy-not-agreed",
    ),
    "epsilon that falls": (
        "agreed",
        {"study": {"privacy": {"epsilon": 0.5}}},
        "policy-not-agreed",
    ),
    "epsilon missing": ("query", {"study": {"privacy": {"epsilon": ...}}}, "message-body"),
    # Identities.
    "doubled identity": ("agreed", {"study": {"id": "other"}}, "policy-not-agreed"),
    "unknown identity": ("train", {"run": "second"}, "policy-not-agreed"),
    # Texts.
    "100 KB of text with control characters": (
        "query",
        {"\x1b[2J\n" + "x" * 100_000: 1},
        "message-body",
    ),
}


@pytest.fixture
def hospital(federation: Any) -> Any:
    """The site_state of a hospital with a lifetime ledger."""
    return federation.site_state(federation.hospital("east", privacy=POLICY))


@pytest.fixture
def question_of(federation: Any, hospital: Any, wire: Any) -> Callable[..., RecordDict]:
    """The message of a case, after all that honestly comes before it."""

    def make(kind: str, changes: Mapping[str, Any]) -> RecordDict:
        study = federation.study(**STUDY)
        proposal = Proposal(study=study, run=RUN, private=True)
        if kind == "query":
            return wire.with_body(to_record(proposal), changes)  # type: ignore[no-any-return]
        answer = federation.ask(hospital, to_record(proposal), kind="query")
        if kind == "agreed":
            return wire.with_body(to_record(proposal), changes)  # type: ignore[no-any-return]
        task = TrainTask(
            study=study,
            run=RUN,
            round=1,
            message_id=f"{RUN}/1/east",
            mechanism=read_body(answer, Declaration).mechanism,
        )
        weights = trainable_state(hospital.network(study))
        if kind == "answered":
            federation.ask(hospital, to_record(task, weights=weights), kind="train")
        return wire.with_body(to_record(task, weights=weights), changes)  # type: ignore[no-any-return]

    return make


@pytest.fixture
def refused(
    federation: Any,
    hospital: Any,
    question_of: Any,
    wire: Any,
    computed: list[str],
    kept_files: Any,
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., None]:
    """Sends a message and makes the three checks, and that nothing was charged."""

    def check(question: RecordDict, *, kind: str, code: str) -> None:
        before = kept_files(hospital)
        computed.clear()
        caplog.clear()
        reply = federation.ask(hospital, question, kind=kind)
        # The code and nothing else; so also nothing that names anybody.
        assert list(reply) == ["error"]
        assert dict(reply.config_records["error"]) == {"code": code}
        (line,) = wire.lines_of_medfl(caplog)
        assert line.startswith(f"Refused with code {code}: ")
        for name in (str(hospital.site.data.root), str(hospital.site.state), "BraTS2021", ".py"):
            assert name not in line
        assert computed == []
        assert kept_files(hospital) == before

    return check


def test_the_list_is_whole() -> None:
    assert len(CASES) == 30


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_server_is_refused_and_gets_nothing(
    case: str, federation: Any, question_of: Any, refused: Any
) -> None:
    kind, changes, code = CASES[case]
    if case == "symlink":
        link = federation.scratch / "link"
        link.symlink_to("/etc/passwd")
        changes = {"study": {"network": {"name": str(link)}}}
    sent = {"agreed": "query", "answered": "train"}.get(kind, kind)
    refused(question_of(kind, changes), kind=sent, code=code)


@pytest.mark.parametrize("kind", ["query", "train", "answered"])
def test_the_same_messages_unchanged_are_answered(
    kind: str, federation: Any, hospital: Any, question_of: Any
) -> None:
    sent = {"answered": "train"}.get(kind, kind)
    assert "error" not in federation.ask(hospital, question_of(kind, {}), kind=sent)


def test_a_message_id_that_is_a_path_chooses_no_file(
    federation: Any, hospital: Any, question_of: Any
) -> None:
    question = question_of("train", {"message_id": "../../ledger/ledger.sqlite"})
    before = {path for path in hospital.site.state.rglob("*") if "ledger" not in path.parts}
    assert "error" not in federation.ask(hospital, question, kind="train")
    after = {path for path in hospital.site.state.rglob("*") if "ledger" not in path.parts}
    new = {path for path in after - before if path.is_file() and "cache" not in path.parts}
    state = Path(hospital.site.state)
    assert {path.parent for path in new} == {state / "outbox", state / "models" / RUN}


def test_weights_beyond_any_model_are_refused_before_the_charge(
    hospital: Any, federation: Any, question_of: Any, refused: Any
) -> None:
    weights = trainable_state(hospital.network(federation.study(**STUDY)))
    huge = {name: torch.full_like(value, 1e30) for name, value in weights.items()}
    question = question_of("train", {})
    question["arrays"] = messages.to_arrays(huge)
    refused(question, kind="train", code="message-norm")


def test_a_bomb_of_weights_is_refused_before_it_is_read(question_of: Any, refused: Any) -> None:
    question = question_of("train", {})
    block = bytes(2**28)  # pages of zeros, which take no memory until somebody reads them
    bomb = Array(dtype="float32", shape=(2**26,), stype="numpy.ndarray", data=block)
    question["arrays"] = ArrayRecord({f"w{number}": bomb for number in range(5)})
    refused(question, kind="train", code="message-size")
