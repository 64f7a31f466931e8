"""What the cases of a hostile server and of a hostile site share: how refusals are looked at."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import (
    Body,
    Declaration,
    SiteUpdate,
    read_weights,
    to_record,
    weights_digest,
)
from medfl.site import round as site_round

MARK = "MUELLER^ANNA 1950"
"""What hostile sites put wherever a text fits; it may arrive nowhere."""

LONGEST_LINE = 600
"""Characters of a line about one refusal, its prefix included."""


def merged(body: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values replaced or added; the ellipsis takes one away."""
    result = dict(body)
    for key, value in changes.items():
        inner = result.get(key)
        if value is ...:
            del result[key]
        elif isinstance(inner, dict) and isinstance(value, dict):
            result[key] = merged(inner, value)
        else:
            result[key] = value
    return result


def with_body(record: RecordDict, changes: Mapping[str, Any]) -> RecordDict:
    """The message with a changed body, whatever the schema says."""
    body = merged(json.loads(str(record.config_records["body"]["json"])), changes)
    record["body"] = ConfigRecord({"json": json.dumps(body)})
    return record


def lines_of_medfl(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What medfl wrote, after a look at how it wrote it: short, one line, no trace of code."""
    lines = []
    for record in caplog.records:
        if record.name.startswith("medfl"):
            line = record.getMessage()
            assert line.isprintable(), line[:200]
            assert len(line) <= LONGEST_LINE
            assert record.exc_info is None
            assert record.levelno == logging.WARNING
            assert MARK not in line
            lines.append(line)
    return lines


@dataclass
class Wire:
    """Changes to a message as its hostile sender makes them, with its own signature."""

    with_body = staticmethod(with_body)
    lines_of_medfl = staticmethod(lines_of_medfl)
    mark = MARK

    @staticmethod
    def signed(record: RecordDict, kind: type[Body], keys: SiteKeys) -> RecordDict:
        """The statement in a record, if it still is one, signed again by who sends it."""
        text = str(record.config_records["body"]["json"])
        try:
            statement = kind.model_validate_json(text)
        except ValueError:
            return record
        if isinstance(statement, SiteUpdate) and "arrays" in record:
            digest = weights_digest(read_weights(record))
            statement = statement.model_copy(update={"weights_digest": digest})
        assert isinstance(statement, Declaration | SiteUpdate)
        record["body"] = to_record(statement.signed(keys))["body"]
        return record


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    """How hostile messages are made and refusals are looked at."""
    return Wire


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each round that was computed."""
    rounds: list[str] = []
    original = site_round.train_round

    def watched(*arguments: Any, **keywords: Any) -> Any:
        rounds.append("round")
        return original(*arguments, **keywords)

    monkeypatch.setattr(site_round, "train_round", watched)
    return rounds


class Recorded:
    """Honest answers by site and kind of message, and the keys of the site that turns hostile."""

    def __init__(self, *, bad: str) -> None:
        self.bad = bad
        self.keys: SiteKeys
        self._answers: dict[tuple[str, str], RecordDict] = {}

    def keep(self, site: str, message: Message, answer: Callable[[], Message]) -> Message:
        """Record an honest run."""
        reply = answer()
        self._answers[site, message.metadata.message_type] = copy.deepcopy(reply.content)
        return reply

    def content(self, site: str, kind: str) -> RecordDict:
        """What a site answers honestly to a kind of message."""
        return copy.deepcopy(self._answers[site, kind])

    def reply(self, site: str, message: Message) -> Message:
        """The honest answer of a site, as if it had been computed now."""
        return Message(self.content(site, message.metadata.message_type), reply_to=message)


@pytest.fixture(scope="session")
def recorded(shared_federation: Any) -> Recorded:
    """What three honest sites answer in a round, so that a case costs no training."""
    answers = Recorded(bad="north")
    finished = shared_federation.run(
        shared_federation.study(training={"rounds": 1}),
        shared_federation.sites(),
        name="hostile-honest",
        fault=answers.keep,
        run_id="hostile",
    )
    answers.keys = SiteKeys.read(finished.state(answers.bad) / "keys")
    return answers


@pytest.fixture(scope="session")
def without_bad(shared_federation: Any, recorded: Recorded) -> Any:
    """The run of the two sound sites, as if the third did not exist."""
    return shared_federation.run(
        shared_federation.study(training={"rounds": 1}),
        shared_federation.sites("east", "south"),
        name="hostile-without",
        fault=lambda site, message, _: recorded.reply(site, message),
        run_id="hostile",
    )


@pytest.fixture(scope="session")
def kept_files() -> Callable[[Any], dict[str, bytes]]:
    """Every file of a hospital's ledger and outbox, but for the log's index."""

    def kept(hospital: Any) -> dict[str, bytes]:
        hospital.open_ledger().close()
        folders = [hospital.ledger_folder, Path(hospital.site.state, "outbox")]
        files = [file for folder in folders for file in folder.glob("*")]
        return {str(file): file.read_bytes() for file in files if not file.name.endswith("-shm")}

    return kept


@pytest.fixture(scope="session")
def truncated() -> Callable[[RecordDict], RecordDict]:
    """What is there of an update when its sender is cut off in the middle of its weights."""

    def cut(record: RecordDict) -> RecordDict:
        arrays = dict(record.array_records["arrays"])
        name = max(arrays, key=lambda key: len(arrays[key].data))
        arrays[name].data = arrays[name].data[: len(arrays[name].data) // 2]
        record["arrays"] = ArrayRecord(arrays)
        return record

    return cut
