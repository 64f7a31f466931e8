"""Before round 1: who agrees, what is refused with which code, and when the server gives up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message

from medfl.config.schedule import RoundSchedule
from medfl.errors import MessageError, QuorumError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import Declaration
from medfl.server.agreement import check_declaration

Answer = Callable[[], Message]

MECHANISM: dict[str, Any] = {
    "sampling_prob": 0.5,
    "noise_multiplier": 3.0,
    "clip_norm": 1.0,
    "clipping": "normalised",
    "local_steps": 1,
    "declared_patients": 20,
    "noise_origin": "seeded",
}
DECLARATION: dict[str, Any] = {
    "site": "north",
    "run": "first",
    "run_steps": 0,
    "event_key": "0" * 64,
    "purpose": "open-data",
    "declared_patients": 20,
    "weight": 20.0,
    "modalities": ("t1c", "t2f"),
    "label_scheme": "brats",
    "delta": 1e-5,
    "epsilon_budget": 10.0,
    "epsilon": 8.0,
    "mechanism": Mechanism(**MECHANISM),
    "ledger_sequence": 1,
    "ledger_hash": "0" * 64,
}


def declaration(**changes: Any) -> Declaration:
    return Declaration(**{**DECLARATION, **changes})


def with_mechanism(**changes: Any) -> Declaration:
    return declaration(mechanism=Mechanism(**{**MECHANISM, **changes}))


def refused(federation: Any, found: Declaration, **arguments: Any) -> str:
    usual: dict[str, Any] = {"study": federation.study(), "private": True, "known": {}}
    with pytest.raises(MessageError) as caught:
        check_declaration(found, **{**usual, **arguments})
    return caught.value.code


def test_a_declaration_that_keeps_the_studys_promise_is_accepted(federation: Any) -> None:
    check_declaration(declaration(), study=federation.study(), private=True, known={})


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling_prob": 0.4},
        {"clip_norm": 2.0},
        {"clipping": "fixed"},
        {"local_steps": 2},
        {"noise_origin": "operating-system"},
        {"declared_patients": 19},
        {"noise_multiplier": 0.0},
        {"revision": 1},
        {
            "clip_norm_schedule": RoundSchedule(
                shape="linear", warmup_rounds=0, final_fraction=0.5, rounds=2
            )
        },
    ],
)
def test_another_mechanism_than_the_studys_is_refused(
    changes: dict[str, Any], federation: Any
) -> None:
    assert refused(federation, with_mechanism(**changes)) == "declaration-mechanism"


@pytest.mark.parametrize("course", [None, {"rounds": 3}, {"final_fraction": 0.4}], ids=str)
def test_another_schedule_of_the_clip_norm_than_the_studys_is_refused(
    course: dict[str, Any] | None, federation: Any
) -> None:
    asked = {"shape": "linear", "warmup_rounds": 0, "final_fraction": 0.5}
    study = federation.study(privacy={"clip_norm_schedule": asked})
    sound = RoundSchedule(**asked, rounds=2)
    right = with_mechanism(clip_norm_schedule=sound)
    check_declaration(right, study=study, private=True, known={})
    other = course and RoundSchedule(**{**asked, "rounds": 2, **course})
    found = with_mechanism(clip_norm_schedule=other)
    assert refused(federation, found, study=study) == "declaration-mechanism"


def test_noise_in_a_baseline_without_noise_is_refused(federation: Any) -> None:
    assert refused(federation, declaration(), private=False) == "declaration-mechanism"


def test_less_noise_than_the_studys_epsilon_needs_is_refused(federation: Any) -> None:
    # The epsilon that the site states is not what decides.
    boast = declaration(epsilon=0.1, mechanism=Mechanism(**{**MECHANISM, "noise_multiplier": 0.5}))
    assert refused(federation, boast) == "declaration-epsilon"


def test_a_delta_above_a_tenth_of_a_patient_is_refused(federation: Any) -> None:
    assert refused(federation, declaration(delta=0.0051)) == "declaration-delta"
    check_declaration(declaration(delta=0.005), study=federation.study(), private=True, known={})


def test_a_site_that_is_there_already_is_refused(federation: Any) -> None:
    known = {"north": declaration()}
    assert refused(federation, declaration(), known=known) == "declaration-doubled"


def spoiling(*, spoil: Callable[[dict[str, Any]], Any], sites: tuple[str, ...]) -> Any:
    """A fault in what sites declare."""

    def fault(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if message.metadata.message_type == "query" and site in sites:
            body = json.loads(reply.content.config_records["body"]["json"])
            spoil(body)
            reply.content["body"] = ConfigRecord({"json": json.dumps(body)})
        return reply

    return fault


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda body: body.update(weight=-3.0), "message-body"),
        (lambda body: body.update(weight=0.0), "message-body"),
        (lambda body: body.update(weight=math.nan), "message-body"),
        (lambda body: body.update(weight=math.inf), "message-body"),
        (lambda body: body.update(declared_patients=0), "message-body"),
        (lambda body: body.update(declared_patients=10**7), "declaration-mechanism"),
        (lambda body: body.update(declared_patients=10**15), "message-body"),
        (lambda body: body.update(epsilon=-1.0), "message-body"),
        (lambda body: body.update(epsilon=math.nan), "message-body"),
        (lambda body: body.pop("epsilon"), "message-body"),
        (lambda body: body.update(site="../../etc"), "message-body"),
        (lambda body: body.update(site=""), "message-body"),
        (lambda body: body.update(ledger_hash="x" * 64), "message-body"),
        (lambda body: body.update(patients=["BraTS2021_00002"]), "message-body"),
        (lambda body: body["mechanism"].update(sampling_prob="0.5"), "message-body"),
        (lambda body: body["mechanism"].pop("clip_norm"), "message-body"),
        (lambda body: body["mechanism"].update(noise_multiplier=0.01), "declaration-epsilon"),
        (lambda body: body.update(delta=0.5), "declaration-delta"),
        (lambda body: body.update(site="east"), "declaration-doubled"),
        (lambda body: body.update(weight=1e7), "message-body"),
        (lambda body: body.update(run="another"), "declaration-run"),
        (lambda body: body.update(weight=5.5), "declaration-signature"),
        (lambda body: body.update(run_steps=1), "declaration-signature"),
        (lambda body: body.update(event_key="0" * 64), "declaration-signature"),
        (lambda body: body.update(signature="0" * 128), "declaration-signature"),
    ],
)
def test_a_wrong_declaration_leaves_the_study_to_the_others(
    spoil: Callable[[dict[str, Any]], Any], code: str, federation: Any
) -> None:
    fault = spoiling(spoil=spoil, sites=("north",))
    study = federation.study(training={"rounds": 1}, aggregation={"min_sites": 3})
    with pytest.raises(QuorumError, match=rf"found 2 \(site 2: {code}\)"):
        federation.run(study, federation.sites(), fault=fault)


def test_the_others_go_on_without_the_site_that_refused(federation: Any) -> None:
    def fails(site: str, message: Message, answer: Answer) -> Message:
        if site == "north":
            return Message(Error(code=1, reason="BraTS2021_00002"), reply_to=message)
        return answer()

    study = federation.study(training={"rounds": 1})
    finished = federation.run(study, federation.sites(), fault=fails)
    assert finished.outcomes() == {"east": ("admitted", ""), "south": ("admitted", "")}


def test_too_few_sites_end_the_run_with_every_refusals_code(federation: Any) -> None:
    def fault(site: str, message: Message, answer: Answer) -> Message | None:
        if site == "north":
            return None
        if site == "south":
            return Message(Error(code=1, reason="BraTS2021_00002"), reply_to=message)
        return answer()

    study = federation.study(aggregation={"round_timeout_seconds": 0.01})
    with pytest.raises(QuorumError) as caught:
        federation.run(study, federation.sites(), fault=fault)
    assert caught.value.code == "quorum"
    assert re.fullmatch(
        r"Expected at least 2 sites that agree to the study, found 1 "
        r"\(site 2: no answer within [\d.]+ s; site 3: node-error\)\.",
        str(caught.value),
    )


def test_nothing_was_charged_where_no_study_came_about(federation: Any) -> None:
    fault = spoiling(spoil=lambda body: body.update(delta=0.5), sites=("north", "south"))
    with pytest.raises(QuorumError):
        federation.run(federation.study(), federation.sites(), fault=fault)
    from medfl.privacy.ledger.ledger import Ledger

    for site in ("east", "north", "south"):
        with Ledger.open(federation.scratch / "run" / "sites" / site / "ledger") as ledger:
            assert ledger.spent().by_run == ()


def test_a_site_lacking_a_modality_says_so(federation: Any) -> None:
    blind = federation.site("north", data={"modalities": ["t1c"]})
    study = federation.study(aggregation={"min_sites": 3})
    with pytest.raises(QuorumError, match="site 3: modalities"):
        federation.run(study, [*federation.sites("east", "south"), blind])


def test_too_few_connected_nodes_are_not_waited_for_for_ever(federation: Any) -> None:
    study = federation.study(aggregation={"min_sites": 5, "round_timeout_seconds": 0.3})
    with pytest.raises(QuorumError, match=r"at least 5 connected sites after 0.3 s, found 3"):
        federation.run(study, federation.sites())
