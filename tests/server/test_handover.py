"""The final model on its way to the hospitals: nobody who misses it fails the run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flwr.app import Message

from medfl.protocol.messages import FINISH, Finished, to_record
from medfl.site.run_models import finished_runs

STUDY: dict[str, Any] = {"privacy": {"noise": "operating-system"}, "training": {"rounds": 1}}


def only_final(answer_of: Any) -> Any:
    """A fault of the site south, when the final model comes."""

    def fault(site: str, message: Message, answer: Any) -> Message | None:
        if site == "south" and message.metadata.message_type == FINISH:
            wrong: Message | None = answer_of(message)
            return wrong
        honest: Message = answer()
        return honest

    return fault


def other_run(message: Message) -> Message:
    return Message(to_record(Finished(site="south", run="another")), reply_to=message)


def other_site(message: Message) -> Message:
    return Message(to_record(Finished(site="north", run="run")), reply_to=message)


def other_body(message: Message) -> Message:
    return Message(message.content, reply_to=message)


@pytest.mark.parametrize(
    ("answer_of", "code"),
    [
        (lambda _: None, "silent"),
        (other_run, "finished-other"),
        (other_site, "finished-other"),
        (other_body, "message-body"),
    ],
)
def test_who_does_not_take_it_is_named_and_the_run_is_finished(
    federation: Any, caplog: pytest.LogCaptureFixture, answer_of: Any, code: str
) -> None:
    sites = [federation.hospital(name) for name in ("east", "north", "south")]
    study = federation.study(**STUDY, aggregation={"round_timeout_seconds": 1.0})
    with caplog.at_level(logging.WARNING, logger="medfl.server"):
        finished = federation.run(study, sites, fault=only_final(answer_of))
    assert finished.folder.undelivered() == {"south": code}
    assert f"did not reach every hospital (south: {code})" in caplog.text
    assert finished.weights
    assert [bool(finished_runs(site.state)) for site in sites] == [True, True, False]


def test_a_finished_run_that_goes_on_hands_over_what_is_missing(federation: Any) -> None:
    sites = [federation.hospital(name) for name in ("east", "north", "south")]
    study = federation.study(**STUDY, aggregation={"round_timeout_seconds": 1.0})
    first = federation.run(study, sites, fault=only_final(lambda _: None))
    (kept,) = [found.federated for found in finished_runs(sites[0].state)]
    written = kept.stat().st_mtime_ns
    again = federation.run(study, sites, resume=True)
    assert again.folder.undelivered() == {}
    assert [len(finished_runs(site.state)) for site in sites] == [1, 1, 1]
    assert kept.stat().st_mtime_ns == written
    assert [line.round for line in first.folder.rounds()] == [1]


def test_open_data_alone_leave_no_note(federation: Any) -> None:
    finished = federation.run(federation.study(training={"rounds": 1}), federation.sites())
    assert finished.folder.undelivered() == {}
