"""What a site does with a server's messages: its policy first, then the ledger, then the work."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medfl.privacy.ledger.ledger import Ledger
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import (
    Declaration,
    EvaluateTask,
    Proposal,
    SiteUpdate,
    TrainTask,
    read_body,
    read_weights,
    refusal_code,
    to_record,
    weights_digest,
)
from medfl.segmentation.networks import trainable_state

POLICY: dict[str, Any] = {
    "min_noise_multiplier": 1.0,
    "max_clip_norm": 1.0,
    "max_sampling_prob": 0.5,
    "max_local_steps": 2,
    "max_rounds": 5,
}
AGREED: dict[str, Any] = {
    "sampling_prob": 0.5,
    "noise_multiplier": 3.0,
    "clip_norm": 1.0,
    "clipping": "normalised",
    "local_steps": 1,
    "declared_patients": 4,
    "noise_origin": "operating-system",
}
STUDY: dict[str, Any] = {"privacy": {"noise": "operating-system"}}


@pytest.fixture
def hospital(federation: Any) -> Any:
    """The site_state of a hospital with a lifetime ledger."""
    return federation.site_state(federation.hospital("east", privacy=POLICY))


def task(federation: Any, *, number: int = 1, study: Any = None, **mechanism: Any) -> TrainTask:
    return TrainTask(
        study=study or federation.study(**STUDY),
        run="first",
        round=number,
        message_id=f"first/{number}/east",
        mechanism=Mechanism(**{**AGREED, **mechanism}),
    )


def agreed(federation: Any, site_state: Any, *, study: Any = None) -> Declaration:
    """The site's answer to the proposal of the run in `task`."""
    proposal = Proposal(study=study or federation.study(**STUDY), run="first", private=True)
    return read_body(federation.ask(site_state, to_record(proposal), kind="query"), Declaration)


def agreed_task(federation: Any, site_state: Any, *, number: int = 1) -> TrainTask:
    """A round of a run that the site has agreed to."""
    mechanism = agreed(federation, site_state).mechanism
    return task(federation, number=number, **mechanism.to_dict())


def state(site_state: Any, study: Any) -> dict[str, Any]:
    """Everything that a refused message may not touch."""
    with site_state.open_ledger() as ledger:
        head = ledger.head()
    weights = trainable_state(site_state.network(study))
    return {
        "head": head,
        "outbox": sorted(Path(site_state.site.state, "outbox").glob("*")),
        "weights": {name: digest(value) for name, value in weights.items()},
    }


def digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()


def train(federation: Any, site_state: Any, asked: TrainTask, *, weights: Any = None) -> Any:
    given = weights or trainable_state(site_state.network(asked.study))
    return federation.ask(site_state, to_record(asked, weights=given), kind="train")


def shifted(site_state: Any, study: Any) -> dict[str, torch.Tensor]:
    """Weights that the site does not hold yet."""
    weights = trainable_state(site_state.network(study))
    return {name: value + 1.0 for name, value in weights.items()}


@pytest.mark.parametrize(
    ("mechanism", "code"),
    [
        ({"noise_multiplier": 0.99}, "policy-noise-multiplier"),
        ({"noise_multiplier": 0.0}, "policy-noise"),
        ({"noise_origin": "seeded"}, "policy-seeded"),
        ({"clip_norm": 1.01}, "policy-clip-norm"),
        ({"sampling_prob": 0.51}, "policy-sampling-prob"),
        ({"local_steps": 3}, "policy-local-steps"),
        ({"declared_patients": 5}, "policy-declared-patients"),
        ({"declared_patients": 1}, "policy-declared-patients"),
    ],
)
def test_a_task_weaker_than_the_policy_is_refused_and_touches_nothing(
    mechanism: dict[str, Any], code: str, federation: Any, hospital: Any
) -> None:
    asked = task(federation, **mechanism)
    before = state(hospital, asked.study)
    reply = train(federation, hospital, asked, weights=shifted(hospital, asked.study))
    assert refusal_code(reply) == code
    assert set(reply) == {"error"}
    assert state(hospital, asked.study) == before


@pytest.mark.parametrize(("rounds", "number"), [(6, 1), (10**6, 1), (2, 3), (2, 10**7)], ids=str)
def test_more_rounds_than_the_policy_or_the_study_has_are_refused(
    rounds: int, number: int, federation: Any, hospital: Any
) -> None:
    study = federation.study(**STUDY, training={"rounds": rounds})
    asked = task(federation, number=number, study=study)
    before = state(hospital, study)
    reply = train(federation, hospital, asked, weights=shifted(hospital, study))
    assert refusal_code(reply) == "policy-rounds"
    assert state(hospital, study) == before


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"privacy": {"noise": "seeded"}}, "policy-seeded"),
        ({"privacy": {"noise": "operating-system", "clip_norm": 5.0}}, "policy-clip-norm"),
        ({"privacy": {"noise": "operating-system", "sampling_prob": 0.9}}, "policy-sampling-prob"),
        ({**STUDY, "training": {"local_steps": 3}}, "policy-local-steps"),
        ({**STUDY, "training": {"rounds": 6}}, "policy-rounds"),
    ],
)
def test_a_proposal_weaker_than_the_policy_is_refused_before_anything_is_agreed(
    changes: dict[str, Any], code: str, federation: Any, hospital: Any
) -> None:
    study = federation.study(**changes)
    before = state(hospital, study)
    proposal = Proposal(study=study, run="first", private=True)
    assert refusal_code(federation.ask(hospital, to_record(proposal), kind="query")) == code
    assert state(hospital, study) == before


def test_a_baseline_without_noise_is_refused_by_a_hospital(federation: Any, hospital: Any) -> None:
    proposal = Proposal(study=federation.study(**STUDY), run="first", private=False)
    reply = federation.ask(hospital, to_record(proposal), kind="query")
    assert refusal_code(reply) == "policy-noise"


def test_a_hospital_shares_no_metrics(federation: Any, hospital: Any) -> None:
    study = federation.study(**STUDY)
    before = state(hospital, study)
    asked = EvaluateTask(study=study, round=1, distances=True)
    question = to_record(asked, weights=shifted(hospital, study))
    assert refusal_code(federation.ask(hospital, question, kind="evaluate")) == "policy-metrics"
    assert state(hospital, study) == before


@pytest.mark.slow
def test_noise_is_as_large_as_the_policys_floor_whatever_the_study_wants(
    federation: Any,
) -> None:
    floor = {"min_noise_multiplier": 20.0}
    site_state = federation.site_state(federation.hospital("east", privacy=floor))
    proposal = Proposal(study=federation.study(**STUDY), run="first", private=True)
    reply = federation.ask(site_state, to_record(proposal), kind="query")
    assert read_body(reply, Declaration).mechanism.noise_multiplier == 20.0


def broken(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Weights as no honest server sends them."""
    name = next(name for name, value in weights.items() if value.ndim > 1)
    value = weights[name]
    changes: dict[str, Any] = {
        "NaN": weights | {name: torch.full_like(value, math.nan)},
        "infinity": weights | {name: torch.full_like(value, math.inf)},
        "other shape": weights | {name: value.reshape(-1)},
        "broadcastable": weights | {name: value.reshape(-1)[:1]},
        "missing": {key: kept for key, kept in weights.items() if key != name},
        "extra": weights | {"intruder": value},
        "float64": weights | {name: value.double()},
        "none": {},
    }
    found: dict[str, torch.Tensor] = changes[kind]
    return found


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("NaN", "model"),
        ("infinity", "model"),
        ("other shape", "model"),
        ("broadcastable", "model"),
        ("missing", "model"),
        ("extra", "model"),
        ("float64", "message-dtype"),
        ("none", "model"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_before_the_charge(
    kind: str, code: str, federation: Any, hospital: Any
) -> None:
    asked = task(federation)
    before = state(hospital, asked.study)
    weights = broken(trainable_state(hospital.network(asked.study)), kind)
    question = to_record(asked, weights=weights)
    assert refusal_code(federation.ask(hospital, question, kind="train")) == code
    assert state(hospital, asked.study) == before


def test_a_message_of_the_wrong_kind_is_refused(federation: Any, hospital: Any) -> None:
    proposal = Proposal(study=federation.study(**STUDY), run="first", private=True)
    reply = federation.ask(hospital, to_record(proposal), kind="train")
    assert refusal_code(reply) == "message-body"


def test_a_round_is_charged_before_and_released_after(federation: Any, hospital: Any) -> None:
    asked = agreed_task(federation, hospital)
    reply = train(federation, hospital, asked)
    update = read_body(reply, SiteUpdate)
    with hospital.open_ledger() as ledger:
        (run,) = ledger.spent().by_run
        # The update tells the head at its charge; its own release comes after it.
        assert ledger.head().sequence == update.ledger_sequence + 1
    assert (run.study, run.run, run.steps, run.charges, run.released) == ("tiny", "first", 1, 1, 1)
    assert update.steps == 1
    assert update.mechanism == asked.mechanism


@pytest.mark.slow
def test_a_refusal_beyond_the_budget_leaves_ledger_and_weights_as_they_were(
    federation: Any,
) -> None:
    # An agreement sets nothing aside: two studies that fit one by one were both agreed to.
    study = federation.study(
        privacy={"noise": "operating-system", "epsilon": 3.0}, training={"rounds": 1}
    )
    policy = {"epsilon": 3.3, "studies_at_once": 2}
    site_state = federation.site_state(federation.hospital("east", privacy=policy))
    tasks = []
    for name in ("first", "second"):
        named = study.model_copy(update={"id": name})
        beside = tuple(task.run for task in tasks)
        proposal = Proposal(study=named, run=name, private=True, beside=beside)
        answer = federation.ask(site_state, to_record(proposal), kind="query")
        tasks.append(
            TrainTask(
                study=named,
                run=name,
                round=1,
                message_id=f"{name}/1/east",
                mechanism=read_body(answer, Declaration).mechanism,
            )
        )
    weights = read_weights(train(federation, site_state, tasks[0]))
    with site_state.open_ledger() as ledger:
        spent = ledger.spent().epsilon
    assert 2.9 < spent <= 3.0
    before = state(site_state, tasks[1].study)
    reply = train(federation, site_state, tasks[1], weights=weights)
    assert refusal_code(reply) == "budget-exceeded"
    assert state(site_state, tasks[1].study)["head"] == before["head"]
    assert state(site_state, tasks[1].study)["outbox"] == before["outbox"]
    with site_state.open_ledger() as ledger:
        assert ledger.spent().epsilon == spent


def test_a_task_without_an_agreement_is_refused_and_touches_nothing(
    federation: Any, hospital: Any
) -> None:
    asked = task(federation)
    before = state(hospital, asked.study)
    reply = train(federation, hospital, asked)
    assert refusal_code(reply) == "policy-not-agreed"
    assert state(hospital, asked.study) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": {"noise_multiplier": 30.0}},  # more noise is another mechanism as well
        {"mechanism": {"sampling_prob": 0.4}},
        {"mechanism": {"clipping": "fixed"}},
        {"study": {"training": {"learning_rate": 0.25}}},
        {"study": {"seed": 8}},
        {"study": {"id": "other"}},
        {"run": "second"},
    ],
    ids=str,
)
def test_a_task_that_differs_from_what_was_agreed_to_is_refused_and_touches_nothing(
    changes: dict[str, Any], federation: Any, hospital: Any
) -> None:
    sound = agreed_task(federation, hospital)
    mechanism = Mechanism(**{**sound.mechanism.to_dict(), **changes.get("mechanism", {})})
    asked = sound.model_copy(
        update={
            "study": federation.study(**STUDY | changes.get("study", {})),
            "mechanism": mechanism,
            "run": changes.get("run", sound.run),
        }
    )
    before = state(hospital, asked.study)
    assert refusal_code(train(federation, hospital, asked)) == "policy-not-agreed"
    assert state(hospital, asked.study) == before
    assert refusal_code(train(federation, hospital, sound)) == ""


SCHEDULED: dict[str, Any] = {
    "privacy": {
        "noise": "operating-system",
        "clip_norm_schedule": {"shape": "linear", "final_fraction": 0.1},
    },
    "training": {"rounds": 3},
}


@pytest.mark.slow
def test_a_server_that_asks_for_the_clip_norm_of_another_round_is_refused(
    federation: Any, hospital: Any
) -> None:
    study = federation.study(**SCHEDULED)
    whole = agreed(federation, hospital, study=study).mechanism
    before = state(hospital, study)

    def asked(number: int, mechanism: Mechanism) -> Any:
        return TrainTask(
            study=study,
            run="first",
            round=number,
            message_id=f"first/{number}/east",
            mechanism=mechanism,
        )

    for number, of_round in ((1, 2), (2, 1), (3, 2)):
        question = asked(number, whole.in_round(of_round))
        assert refusal_code(train(federation, hospital, question)) == "policy-not-agreed"
    flat = dataclasses.replace(whole, clip_norm_schedule=None, clip_norm=0.5)
    assert refusal_code(train(federation, hospital, asked(2, flat))) == "policy-not-agreed"
    unscheduled = federation.study(**{**SCHEDULED, "privacy": STUDY["privacy"]})
    question = asked(2, whole.in_round(1)).model_copy(update={"study": unscheduled})
    assert refusal_code(train(federation, hospital, question)) == "policy-not-agreed"
    body = asked(1, whole.in_round(1)).model_copy(update={"mechanism": whole})
    assert refusal_code(train(federation, hospital, body)) == "message-body"
    assert state(hospital, study) == before
    update = read_body(train(federation, hospital, asked(2, whole.in_round(2))), SiteUpdate)
    assert update.mechanism.clip_norm == pytest.approx(0.55)


def test_the_policy_limits_the_largest_clip_norm_of_all_rounds(
    federation: Any, hospital: Any
) -> None:
    study = federation.study(
        **{**SCHEDULED, "privacy": {**SCHEDULED["privacy"], "clip_norm": 1.01}}
    )
    proposal = Proposal(study=study, run="first", private=True)
    reply = federation.ask(hospital, to_record(proposal), kind="query")
    assert refusal_code(reply) == "policy-clip-norm"


def test_an_agreement_is_of_one_study_and_mechanism_for_its_run(
    federation: Any, hospital: Any
) -> None:
    study = federation.study(**STUDY)
    first = agreed(federation, hospital, study=study)
    with hospital.open_ledger() as ledger:
        agreement = ledger.agreement("first")
        assert ledger.agreement("second") is None
    assert agreement.study == study.id
    assert agreement.proposal == study.digest
    assert agreement.mechanism == first.mechanism
    assert agreement.members == frozenset(hospital.members)
    assert len(agreement.members) == 4
    # Asked again: the same answer, and no second agreement.
    again = agreed(federation, hospital, study=study)
    assert again.mechanism == first.mechanism
    assert again.is_signed_by(first.event_key)
    # The same run with another proposal.
    other = Proposal(study=federation.study(**STUDY, seed=9), run="first", private=True)
    reply = federation.ask(hospital, to_record(other), kind="query")
    assert refusal_code(reply) == "policy-not-agreed"


def test_what_a_site_says_of_its_ledger_is_signed_and_true(federation: Any, hospital: Any) -> None:
    declared = agreed(federation, hospital)
    assert declared.is_signed_by(hospital.keys.event_key)
    assert (declared.run, declared.run_steps) == ("first", 0)
    with hospital.open_ledger() as ledger:
        head = ledger.head()
    assert (declared.ledger_sequence, declared.ledger_hash) == (head.sequence, head.hash)
    asked = task(federation, **declared.mechanism.to_dict())
    reply = train(federation, hospital, asked)
    update = read_body(reply, SiteUpdate)
    assert update.is_signed_by(hospital.keys.event_key)
    assert (update.run, update.round, update.run_steps) == ("first", 1, 1)
    assert update.weights_digest == weights_digest(read_weights(reply))


def test_a_hospital_without_keys_says_so_and_gets_none(federation: Any) -> None:
    site = federation.hospital("east")
    shutil.rmtree(site.state / "keys")
    site_state = federation.site_state(site)
    before = state(site_state, federation.study(**STUDY))
    proposal = Proposal(study=federation.study(**STUDY), run="first", private=True)
    reply = federation.ask(site_state, to_record(proposal), kind="query")
    assert refusal_code(reply) == "config"
    assert not (site.state / "keys").exists()
    assert state(site_state, federation.study(**STUDY)) == before


def test_a_ledger_that_is_missing_is_never_made_for_a_hospital(
    federation: Any, hospital: Any
) -> None:
    folder = hospital.ledger_folder
    folder.rename(folder.with_name("elsewhere"))
    assert refusal_code(train(federation, hospital, task(federation))) == "ledger"
    assert not folder.exists()


def test_a_ledger_made_for_another_budget_is_refused(federation: Any) -> None:
    site = federation.hospital("east")
    generous = site.privacy.model_copy(update={"epsilon": 1000.0})
    site_state = federation.site_state(site.model_copy(update={"privacy": generous}))
    assert refusal_code(train(federation, site_state, task(federation))) == "ledger"


@pytest.mark.slow
def test_a_second_study_on_the_same_patients_begins_with_what_was_spent(federation: Any) -> None:
    sites = [federation.hospital(name) for name in ("east", "south")]
    small = federation.study(
        privacy={"noise": "operating-system", "epsilon": 3.0}, training={"rounds": 2}
    )
    later = small.model_copy(update={"id": "later"})
    federation.run(small, sites, name="first")
    with Ledger.open(sites[0].state / "ledger") as ledger:
        spent = ledger.spent().epsilon
    seen: list[Declaration] = []
    finished = federation.run(later, sites, name="second", fault=keeping(seen))
    assert 2.5 < spent <= 3.0
    assert all(declaration.epsilon > spent + 1 for declaration in seen)
    assert finished.outcomes(2) == {"east": ("admitted", ""), "south": ("admitted", "")}
    with Ledger.open(sites[0].state / "ledger") as ledger:
        after = ledger.spent()
    assert after.epsilon == pytest.approx(seen[0].epsilon)
    assert [run.study for run in after.by_run] == ["tiny", "later"]


def keeping(seen: list[Declaration]) -> Any:
    """A fault that only keeps what is declared."""

    def fault(site: str, message: Any, answer: Any) -> Any:
        reply = answer()
        if message.metadata.message_type == "query":
            seen.append(read_body(reply.content, Declaration))
        return reply

    return fault


def test_studies_are_refused_once_the_budget_is_used_up(federation: Any) -> None:
    site = federation.hospital("east", privacy={"epsilon": 3.0})
    site_state = federation.site_state(site)
    study = federation.study(privacy={"noise": "operating-system", "epsilon": 3.0})
    federation.run(
        study.model_copy(
            update={"aggregation": study.aggregation.model_copy(update={"min_sites": 1})}
        ),
        [site],
    )
    proposal = Proposal(study=study.model_copy(update={"id": "b"}), run="b", private=True)
    reply = federation.ask(site_state, to_record(proposal), kind="query")
    assert refusal_code(reply) == "budget-exceeded"


def test_the_same_request_gets_the_same_bytes_and_no_second_charge(
    federation: Any, hospital: Any
) -> None:
    asked = agreed_task(federation, hospital)
    start = trainable_state(hospital.network(asked.study))
    first = train(federation, hospital, asked, weights=start)
    again = train(federation, hospital, asked, weights=start)
    assert read_body(first, SiteUpdate) == read_body(again, SiteUpdate)
    one, other = read_weights(first), read_weights(again)
    assert {name: digest(value) for name, value in one.items()} == {
        name: digest(value) for name, value in other.items()
    }
    with hospital.open_ledger() as ledger:
        assert ledger.spent().by_run[0].charges == 1


def test_a_stored_update_that_was_changed_is_not_sent(federation: Any, hospital: Any) -> None:
    asked = agreed_task(federation, hospital)
    start = trainable_state(hospital.network(asked.study))
    train(federation, hospital, asked, weights=start)
    (file,) = Path(hospital.site.state, "outbox").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert refusal_code(train(federation, hospital, asked, weights=start)) == "ledger"


def test_another_request_under_an_answered_id_is_refused(federation: Any, hospital: Any) -> None:
    asked = agreed_task(federation, hospital)
    train(federation, hospital, asked)
    before = state(hospital, asked.study)
    reply = train(federation, hospital, asked, weights=shifted(hospital, asked.study))
    assert refusal_code(reply) == "message-replayed"
    assert state(hospital, asked.study) == before


def test_noise_differs_between_two_runs_of_the_same_request(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = []
    for name in ("east", "south"):
        # The same patients on two machines.
        monkeypatch.setenv("XDG_STATE_HOME", str(federation.scratch / name))
        site = federation.hospital(name, data={"root": str(federation.site("east").data.root)})
        site_state = federation.site_state(site)
        asked = agreed_task(federation, site_state)
        updates.append(read_weights(train(federation, site_state, asked)))
    for name, value in updates[0].items():
        assert not torch.equal(value, updates[1][name])
