"""Every way to ask a hospital for less privacy gets a code for an answer, and touches nothing.

Each is sent by a real ServerApp, as a proposal and as a training task. What messages have no field
for is sent as a key of its own, since a hostile server would try that as well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import Declaration, Proposal, TrainTask, read_body, to_record
from medfl.segmentation.networks import trainable_state
from medfl.site import round as site_round

POLICY: dict[str, Any] = {
    "min_noise_multiplier": 1.0,
    "max_clip_norm": 1.0,
    "max_sampling_prob": 0.5,
    "max_local_steps": 2,
    "max_rounds": 5,
}
# Its noise is above the floor of the policy.
STUDY: dict[str, Any] = {"privacy": {"noise": "operating-system", "epsilon": 1.0}}
UNKNOWN = "message-body"

# What is changed in the body, and the code of the rule.
PROPOSALS: dict[str, tuple[dict[str, Any], str]] = {
    "sigma below the floor": ({"study": {"privacy": {"noise_multiplier": 0.1}}}, UNKNOWN),
    "clip norm": ({"study": {"privacy": {"clip_norm": 1.01}}}, "policy-clip-norm"),
    "sampling probability": (
        {"study": {"privacy": {"sampling_prob": 0.51}}},
        "policy-sampling-prob",
    ),
    "local steps": ({"study": {"training": {"local_steps": 3}}}, "policy-local-steps"),
    "rounds": ({"study": {"training": {"rounds": 6}}}, "policy-rounds"),
    "delta": ({"study": {"privacy": {"delta": 0.1}}}, UNKNOWN),
    "unknown key": ({"policy": {"max_rounds": 1000}}, UNKNOWN),
    "DP off": ({"private": False}, "policy-noise"),
    "DP off, by a key": ({"study": {"privacy": {"enabled": False}}}, UNKNOWN),
    "Poisson off": ({"study": {"privacy": {"poisson": False}}}, UNKNOWN),
    "everybody drawn": ({"study": {"privacy": {"sampling_prob": 1.0}}}, "policy-sampling-prob"),
    "seeded noise": ({"study": {"privacy": {"noise": "seeded"}}}, "policy-seeded"),
}
TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "sigma below the floor": ({"mechanism": {"noise_multiplier": 0.99}}, "policy-noise-multiplier"),
    "clip norm": ({"mechanism": {"clip_norm": 1.01}}, "policy-clip-norm"),
    "sampling probability": ({"mechanism": {"sampling_prob": 0.51}}, "policy-sampling-prob"),
    "local steps": ({"mechanism": {"local_steps": 3}}, "policy-local-steps"),
    "rounds": ({"study": {"training": {"rounds": 6}}}, "policy-rounds"),
    "a round too many": ({"round": 3}, "policy-rounds"),
    "delta": ({"mechanism": {"delta": 0.1}}, UNKNOWN),
    "unknown key": ({"policy": {"max_rounds": 1000}}, UNKNOWN),
    "DP off": ({"mechanism": {"noise_multiplier": 0.0}}, "policy-noise"),
    "DP off, by a key": ({"private": False}, UNKNOWN),
    "Poisson off": ({"mechanism": {"poisson": False}}, UNKNOWN),
    "other neighbours": ({"mechanism": {"adjacency": "replace-one"}}, UNKNOWN),
    "everybody drawn": ({"mechanism": {"sampling_prob": 1.0}}, "policy-sampling-prob"),
    "seeded noise": ({"mechanism": {"noise_origin": "seeded"}}, "policy-seeded"),
    "a smaller cohort": ({"mechanism": {"declared_patients": 1}}, "policy-declared-patients"),
}

AGREED: dict[str, dict[str, Any]] = {
    "less noise": {"mechanism": {"noise_multiplier": 1.0}},
    "more steps": {"mechanism": {"local_steps": 2}},
    "more rounds": {"study": {"training": {"rounds": 5}}},
    "a run that was never proposed": {"run": "second"},
}


@pytest.fixture
def hospital(federation: Any) -> Any:
    """The site_state of a hospital with a lifetime ledger."""
    return federation.site_state(federation.hospital("east", privacy=POLICY))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Mechanism]:
    """Mechanisms of the rounds that were computed."""
    rounds: list[Mechanism] = []
    original = site_round.train_round

    def watched(*arguments: Any, **keywords: Any) -> Any:
        rounds.append(keywords["mechanism"])
        return original(*arguments, **keywords)

    monkeypatch.setattr(site_round, "train_round", watched)
    return rounds


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with some replaced or added."""
    result = dict(values)
    for key, value in changes.items():
        inner = result.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        result[key] = changed(inner, value) if both else value
    return result


def with_body(record: RecordDict, changes: Mapping[str, Any]) -> RecordDict:
    """The message as it would be with a changed body, whatever the schema says."""
    body = changed(json.loads(str(record.config_records["body"]["json"])), changes)
    record["body"] = ConfigRecord({"json": json.dumps(body)})
    return record


def proposal(federation: Any, changes: Mapping[str, Any]) -> RecordDict:
    honest = Proposal(study=federation.study(**STUDY), run="first", private=True)
    return with_body(to_record(honest), changes)


def task(federation: Any, hospital: Any, changes: Mapping[str, Any]) -> RecordDict:
    """A task of the run that the hospital has agreed to, with changes."""
    study = federation.study(**STUDY)
    answer = federation.ask(hospital, proposal(federation, {}), kind="query")
    honest = TrainTask(
        study=study,
        run="first",
        round=1,
        message_id="first/1/east",
        mechanism=read_body(answer, Declaration).mechanism,
    )
    weights = trainable_state(hospital.network(study))
    return with_body(to_record(honest, weights=weights), changes)


def kept(hospital: Any) -> dict[str, bytes]:
    """Every file of ledger and outbox, but for the log's index, which readers write too."""
    hospital.open_ledger().close()
    files = [*hospital.ledger_folder.iterdir(), *Path(hospital.site.state, "outbox").glob("*")]
    return {str(file): file.read_bytes() for file in files if not file.name.endswith("-shm")}


def assert_refused(reply: RecordDict, code: str, caplog: pytest.LogCaptureFixture) -> None:
    assert list(reply) == ["error"]
    assert dict(reply.config_records["error"]) == {"code": code}
    (record,) = [r for r in caplog.records if r.name == "medfl.site.client_app"]
    told = record.getMessage()
    prefix = f"Refused with code {code}: "
    assert told.startswith(prefix)
    sentence = told.removeprefix(prefix)
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert "expect" in sentence.lower()
    assert "found" in sentence
    assert len(sentence.split()) >= 6
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


@pytest.mark.parametrize("weakening", PROPOSALS)
def test_a_weaker_proposal_gets_a_code_and_nothing_is_agreed(
    weakening: str, federation: Any, hospital: Any, computed: Any, caplog: Any
) -> None:
    changes, code = PROPOSALS[weakening]
    before = kept(hospital)
    reply = federation.ask(hospital, proposal(federation, changes), kind="query")
    assert_refused(reply, code, caplog)
    assert kept(hospital) == before
    assert computed == []


@pytest.mark.parametrize("weakening", TASKS)
def test_a_weaker_task_gets_a_code_and_nothing_is_charged_or_computed(
    weakening: str, federation: Any, hospital: Any, computed: Any, caplog: Any
) -> None:
    changes, code = TASKS[weakening]
    question = task(federation, hospital, changes)
    before = kept(hospital)
    caplog.clear()
    reply = federation.ask(hospital, question, kind="train")
    assert_refused(reply, code, caplog)
    assert kept(hospital) == before
    assert computed == []


def test_the_same_messages_unchanged_are_accepted(
    federation: Any, hospital: Any, computed: list[Mechanism]
) -> None:
    before = kept(hospital)
    reply = federation.ask(hospital, task(federation, hospital, {}), kind="train")
    assert "error" not in reply
    assert len(computed) == 1
    assert kept(hospital) != before


@pytest.mark.parametrize("weakening", AGREED)
def test_a_task_that_differs_from_what_was_agreed_is_refused(
    weakening: str, federation: Any, hospital: Any, computed: Any, caplog: Any
) -> None:
    # Within the site's policy, and still not what it declared for this run.
    question = task(federation, hospital, AGREED[weakening])
    before = kept(hospital)
    caplog.clear()
    reply = federation.ask(hospital, question, kind="train")
    assert_refused(reply, "policy-not-agreed", caplog)
    assert kept(hospital) == before
    assert computed == []
