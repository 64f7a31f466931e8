"""A hostile site, case by case: it is left out with a code, and the others go on without it.

Each case runs through the real server app. For all of them alike: the outcome has the code, the
server's log holds at most one short line, nothing that the site says in words is in the run folder,
what it may have spent is counted, and the model is bit for bit what it would be without that site.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict

from medfl.errors import MessageError
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import Declaration, SiteUpdate, refusal, refusal_code

pytestmark = pytest.mark.slow

BAD = "north"
RUN = "hostile"
MARK = "MUELLER^ANNA 1950"
ONE_ROUND: dict[str, Any] = {"training": {"rounds": 1}}

# What the site changes in its declaration, signed again, and the code with which it is left out.
DECLARED: dict[str, tuple[Mapping[str, Any], str]] = {
    "path traversal in its name": ({"site": "../../etc/passwd"}, "message-body"),
    "absolute path for its name": ({"site": f"/etc/{MARK}"}, "message-body"),
    "n negative": ({"declared_patients": -1}, "message-body"),
    "n zero": ({"declared_patients": 0}, "message-body"),
    "n NaN": ({"weight": math.nan}, "message-body"),
    "n 10^15": ({"weight": 1e15}, "message-body"),
    "epsilon that does not match": (
        {"mechanism": {"noise_multiplier": 0.3}},
        "declaration-epsilon",
    ),
    "epsilon missing": ({"epsilon": ...}, "message-body"),
    "doubled identity": ({"site": "east"}, "declaration-doubled"),
}
# What the site changes in its update, signed again, and the code of the rejection.
UPDATED: dict[str, tuple[Mapping[str, Any], str]] = {
    "less noise than agreed": ({"mechanism": {"noise_multiplier": 0.01}}, "update-mechanism"),
    "no noise": ({"mechanism": {"noise_multiplier": 0.0}}, "update-mechanism"),
    "noise of another origin": (
        {"mechanism": {"noise_origin": "operating-system"}},
        "update-mechanism",
    ),
    "more steps than agreed": ({"steps": 7, "run_steps": 7}, "update-steps"),
    "replay of another message": ({"message_id": f"{RUN}/0/{BAD}"}, "update-replayed"),
    "round jump": ({"round": 5}, "update-replayed"),
    "epsilon that falls": ({"run_steps": 0}, "ledger-rolled-back"),
}
# What comes in place of an update: the outcome, and the code.
INSTEAD: dict[str, tuple[str, str]] = {
    "unknown message": ("rejected", "update-body"),
    "unknown identity": ("rejected", "update-signature"),
    "an error with a text": ("refused", "node-error"),
    "silence": ("silent", "silent"),
    "lateness": ("rejected", "update-replayed"),
    "disconnect in mid-upload": ("rejected", "message-shape"),
    "100 KB for a code": ("refused", "refusal-code"),
    "control characters for a code": ("refused", "refusal-code"),
}


@pytest.fixture
def runs_with(federation: Any, recorded: Any) -> Callable[..., Any]:
    """Runs a round in which the bad site answers one kind of message in its own way."""

    def run(kind: str, spoil: Callable[[Message], Message | None], **changes: Any) -> Any:
        def fault(site: str, message: Message, answer: Any) -> Message | None:
            reply = recorded.reply(site, message)
            wanted = site == BAD and message.metadata.message_type == kind
            return spoil(reply) if wanted else reply

        study = federation.study(**ONE_ROUND, **changes)
        return federation.run(study, federation.sites(), fault=fault, run_id=RUN)

    return run


def assert_without(finished: Any, other: Any) -> None:
    """The same model, bit for bit."""
    mine, others = finished.weights, other.weights
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def assert_clean(path: Path) -> None:
    """No text of the site's, no control character and no endless line in what the server keeps."""
    names = ("MUELLER", "passwd", str(path.parent))
    for file in path.rglob("*"):
        if not file.is_file() or "sites" in file.relative_to(path).parts:
            continue
        content = file.read_bytes()
        assert not [name for name in names if name.encode() in content], file
        if file.suffix in (".json", ".jsonl", ".csv"):
            text = content.decode()
            assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]", text), file
            assert max(map(len, text.split("\n"))) < 20_000, file


def test_the_list_is_whole() -> None:
    names = [*DECLARED, *UPDATED, *INSTEAD]
    assert len(names) == len(set(names)) == 24


@pytest.mark.parametrize("case", DECLARED)
def test_a_site_that_declares_what_it_may_not_is_left_out(
    case: str, runs_with: Any, recorded: Any, without_bad: Any, wire: Any, caplog: Any
) -> None:
    changes, code = DECLARED[case]

    def spoil(reply: Message) -> Message:
        content = wire.with_body(reply.content, changes)
        reply.content = wire.signed(content, Declaration, recorded.keys)
        return reply

    finished = runs_with("query", spoil)
    assert set(finished.outcomes()) == {"east", "south"}
    (line,) = wire.lines_of_medfl(caplog)
    assert line == f"Left out of the run: site 2: {code}."
    assert_clean(finished.path)
    # It was not asked for a round, and so had nothing to spend.
    assert {event.site for event in finished.folder.events()} == {"east", "south"}
    assert_without(finished, without_bad)


def assert_left_out(finished: Any, outcome: str, code: str, *, round_number: int = 1) -> None:
    assert finished.outcomes(round_number) == {
        "east": ("admitted", ""),
        BAD: (outcome, code),
        "south": ("admitted", ""),
    }
    # Counted or presumed: at least what a site of the same plan has spent that has answered.
    sites = finished.folder.rounds()[round_number - 1].sites
    assert float(sites[BAD].epsilon) >= sites["south"].epsilon > 0
    events = [event for event in finished.folder.events() if event.site == BAD]
    assert not [event for event in events if event.admitted]


@pytest.mark.parametrize("case", UPDATED)
def test_a_site_that_sends_what_it_may_not_is_left_out(
    case: str, runs_with: Any, recorded: Any, without_bad: Any, wire: Any, caplog: Any
) -> None:
    changes, code = UPDATED[case]

    def spoil(reply: Message) -> Message:
        content = wire.with_body(reply.content, changes)
        reply.content = wire.signed(content, SiteUpdate, recorded.keys)
        return reply

    finished = runs_with("train", spoil)
    assert_left_out(finished, "rejected", code)
    assert wire.lines_of_medfl(caplog) == []
    assert_clean(finished.path)
    assert_without(finished, without_bad)


@pytest.fixture
def instead(tmp_path: Path, truncated: Any, wire: Any) -> dict[str, Callable[[Message], Any]]:
    """What the bad site does, by case."""
    stranger = SiteKeys.create(tmp_path / "stranger")

    def with_content(change: Callable[[RecordDict], RecordDict]) -> Callable[[Message], Message]:
        def spoil(reply: Message) -> Message:
            reply.content = change(reply.content)
            return reply

        return spoil

    def fails(reply: Message) -> Message:
        return Message(Error(code=1, reason=f"\x1b[2J{MARK}\n" * 5_000), reply_to=_asked(reply))

    return {
        "unknown message": with_content(
            lambda _: RecordDict({"secretly": ConfigRecord({"json": MARK})})
        ),
        "unknown identity": with_content(lambda c: wire.signed(c, SiteUpdate, stranger)),
        "an error with a text": fails,
        "silence": lambda _: None,
        "disconnect in mid-upload": with_content(truncated),
        "100 KB for a code": with_content(lambda _: refusal("x" * 100_000)),
        "control characters for a code": with_content(lambda _: refusal(f"\x1b[2J\n{MARK}")),
    }


def _asked(reply: Message) -> Message:
    """A message whose reply goes where this reply goes."""
    metadata = reply.metadata
    asked = Message(RecordDict(), metadata.src_node_id, metadata.message_type)
    asked.metadata.__dict__["_message_id"] = metadata.reply_to_message_id
    return asked


@pytest.mark.parametrize("case", [name for name in INSTEAD if name != "lateness"])
def test_a_site_that_does_not_answer_as_asked_is_left_out(
    case: str, runs_with: Any, without_bad: Any, instead: Any, wire: Any, caplog: Any
) -> None:
    outcome, code = INSTEAD[case]
    silent = {"aggregation": {"round_timeout_seconds": 3.0}} if case == "silence" else {}
    finished = runs_with("train", instead[case], **silent)
    assert_left_out(finished, outcome, code)
    assert wire.lines_of_medfl(caplog) == []
    assert_clean(finished.path)
    assert_without(finished, without_bad)


@pytest.mark.parametrize("case", ["lateness"])
def test_an_answer_that_comes_a_round_late_is_left_out(
    case: str, federation: Any, wire: Any, caplog: Any
) -> None:
    kept: list[RecordDict] = []

    def late(site: str, message: Message, answer: Any) -> Message | None:
        if site != BAD or message.metadata.message_type != "train":
            return answer()  # type: ignore[no-any-return]
        if not kept:
            kept.append(answer().content)
            return None
        return Message(kept[0], reply_to=message)

    # In this process everybody who answers does so before anybody is waited for.
    study = federation.study(aggregation={"round_timeout_seconds": 3.0})
    others = federation.run(study, federation.sites("east", "south"), name="others")
    finished = federation.run(study, federation.sites(), fault=late)
    assert_left_out(finished, "silent", "silent")
    assert_left_out(finished, *INSTEAD[case], round_number=2)
    # The sites of this test are honest hospitals' apps, which say that they share no scores.
    assert {line.split(":")[0] for line in wire.lines_of_medfl(caplog)} == {
        "Refused with code policy-metrics"
    }
    assert_clean(finished.path)
    assert_without(finished, others)


@pytest.mark.parametrize("text", ["M\u00fcller-Anna", "MUELLER", "a--b", "-a", "a-", "a\u202eb"])
def test_a_text_in_disguise_is_no_code(text: str) -> None:
    with pytest.raises(MessageError) as caught:
        refusal_code(refusal(text))
    assert caught.value.code == "refusal-code"


def test_nan_of_a_hostile_site_reaches_no_model(
    runs_with: Any, recorded: Any, without_bad: Any, wire: Any
) -> None:
    def spoil(reply: Message) -> Message:
        arrays = reply.content.array_records["arrays"]
        name = sorted(arrays)[0]
        arrays[name] = Array(np.full_like(arrays[name].numpy(), math.nan))
        reply.content = wire.signed(reply.content, SiteUpdate, recorded.keys)
        return reply

    finished = runs_with("train", spoil)
    assert_left_out(finished, "rejected", "update-not-finite")
    assert_without(finished, without_bad)


def test_an_honest_site_is_admitted_by_the_same_server(runs_with: Any, without_bad: Any) -> None:
    finished = runs_with("train", lambda reply: reply)
    assert finished.outcomes()[BAD] == ("admitted", "")
    with pytest.raises(AssertionError):
        assert_without(finished, without_bad)


@pytest.mark.parametrize(
    ("aggregation", "moves"),
    [
        ({"strategy": "fedavg"}, True),
        ({"strategy": "median", "min_sites": 3}, False),
        ({"strategy": "trimmed-mean", "min_sites": 3, "faulty_sites": 1}, False),
    ],
    ids=["fedavg", "median", "trimmed-mean"],
)
def test_an_update_that_is_only_wrong_moves_no_robust_rule_past_the_others(
    aggregation: dict[str, Any], moves: bool, runs_with: Any, recorded: Any, wire: Any
) -> None:
    """It passes every check, since it has the right form and no norm that is too large."""

    def spoil(reply: Message) -> Message:
        for name, array in reply.content["arrays"].items():
            reply.content["arrays"][name] = Array(array.numpy() - np.float32(0.05))
        reply.content = wire.signed(reply.content, SiteUpdate, recorded.keys)
        return reply

    finished = runs_with("train", spoil, aggregation=aggregation)
    assert finished.outcomes() == dict.fromkeys(("east", BAD, "south"), ("admitted", ""))
    honest = [recorded.content(site, "train")["arrays"] for site in ("east", "south")]
    past = []
    for name, found in finished.weights.items():
        ends = np.stack([arrays[name].numpy() for arrays in honest])
        low, high = ends.min(axis=0) - 1e-6, ends.max(axis=0) + 1e-6
        past.append(((found.numpy() < low) | (found.numpy() > high)).ravel())
    share = np.concatenate(past).mean()
    assert share > 0.2 if moves else share == 0
