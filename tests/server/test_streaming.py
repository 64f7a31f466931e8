"""A round of many sites: few updates in memory, any order of arrival, and who is waited for."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from medfl.errors import QuorumError
from medfl.runs.records import Round
from medfl.server import server_app
from medfl.study.in_process_grid import InProcessGrid

pytestmark = pytest.mark.slow

Answer = Callable[[], Message]

MANY = 8
FEW = 2
ONE_ROUND = {"training": {"rounds": 1}}
RUN = "streamed"


def is_training(message: Message) -> bool:
    return message.metadata.message_type == "train"


def many(federation: Any) -> list[Any]:
    """Sites that all have the patients of one."""
    site = federation.site("east")
    return [site.model_copy(update={"name": f"site-{number}"}) for number in range(MANY)]


def without_times(finished: Any) -> list[Round]:
    return [line.model_copy(update={"seconds": 0.0}) for line in finished.folder.rounds()]


@pytest.fixture
def without_collection() -> Iterator[None]:
    """Memory that only the garbage collector would free may stay for many rounds."""
    gc.disable()
    yield
    gc.enable()


def test_few_updates_are_in_memory_however_many_sites_answer(
    federation: Any, monkeypatch: pytest.MonkeyPatch, without_collection: None
) -> None:
    replies: list[weakref.ref[Any]] = []
    weights: list[weakref.ref[Any]] = []
    alive: list[tuple[int, ...]] = []
    read = server_app.read_weights

    def remember(record: Any) -> dict[str, torch.Tensor]:
        found = read(record)
        replies.extend(weakref.ref(array) for array in record["arrays"].values())
        weights.extend(weakref.ref(tensor) for tensor in found.values())
        return found

    def count(site: str, message: Message, answer: Answer) -> Message:
        if is_training(message):
            alive.append(tuple(sum(r() is not None for r in kept) for kept in (replies, weights)))
        return answer()

    monkeypatch.setattr(server_app, "read_weights", remember)
    federation.run(federation.study(**ONE_ROUND), many(federation), fault=count)
    tensors = len(replies) // MANY
    assert len(replies) == len(weights) == MANY * tensors > 0
    assert len(alive) == MANY
    assert max(max(counts) for counts in alive) <= FEW * tensors


def test_the_model_travels_in_one_record_that_all_messages_share_and_goes_with_its_round(
    federation: Any, monkeypatch: pytest.MonkeyPatch, without_collection: None
) -> None:
    identities: list[set[int]] = []
    alive: list[int] = []
    kept: list[weakref.ref[Any]] = []
    push = InProcessGrid.push_messages

    def look(self: InProcessGrid, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        if is_training(sent[0]):
            alive.append(sum(reference() is not None for reference in kept))
            identities.append({id(message.content["arrays"]) for message in sent})
            kept.append(weakref.ref(sent[0].content["arrays"]["convInit.conv.weight"]))
        return push(self, sent)

    monkeypatch.setattr(InProcessGrid, "push_messages", look)
    federation.run(federation.study(training={"rounds": 3}), federation.sites())
    assert [len(records) for records in identities] == [1, 1, 1]
    assert alive == [0, 0, 0]


def test_the_order_of_arrival_changes_neither_model_nor_account(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, arrived = federation.study(), []

    def note(site: str, message: Message, answer: Answer) -> Message:
        if is_training(message):
            arrived.append(site)
        return answer()

    usual = federation.run(study, federation.sites(), name="usual", fault=note, run_id=RUN)
    pull = InProcessGrid.pull_messages

    def backwards(self: InProcessGrid, message_ids: Iterable[str]) -> Iterator[Message]:
        return pull(self, reversed(list(message_ids)))

    monkeypatch.setattr(InProcessGrid, "pull_messages", backwards)
    turned = federation.run(study, federation.sites(), name="turned", fault=note, run_id=RUN)
    assert arrived == 2 * ["east", "north", "south"] + 2 * ["south", "north", "east"]
    assert all(torch.equal(turned.weights[name], usual.weights[name]) for name in usual.weights)
    assert without_times(turned) == without_times(usual)
    assert [list(line.sites) for line in turned.folder.rounds()] == 2 * [sorted(set(arrived))]


def test_whom_a_round_waits_for_can_be_read_while_it_waits(federation: Any) -> None:
    path: Path = federation.scratch / "run" / "waiting.json"
    seen: list[dict[str, Any]] = []

    def look(site: str, message: Message, answer: Answer) -> Message:
        if is_training(message):
            seen.append(json.loads(path.read_text()))
        elif path.exists():  # before the first round, while the sites agree
            assert not seen and "agree" in json.loads(path.read_text())["phase"]
        return answer()

    federation.run(federation.study(), federation.sites(), fault=look)
    assert [entry["round"] for entry in seen] == [1, 1, 1, 2, 2, 2]
    assert [entry["answered"] for entry in seen] == 2 * [[], ["east"], ["east", "north"]]
    assert all(entry["asked"] == ["east", "north", "south"] for entry in seen)
    for entry in seen:
        since, deadline = (datetime.fromisoformat(entry[key]) for key in ("since", "deadline"))
        offset = since.utcoffset()
        assert offset is not None
        assert offset.total_seconds() == 0
        assert (deadline - since).total_seconds() == 60.0
    assert not path.exists()


def test_an_admitted_update_lies_in_the_run_folder_until_its_round_ends(federation: Any) -> None:
    folder: Path = federation.scratch / "run"
    seen: list[list[str]] = []

    def look(site: str, message: Message, answer: Answer) -> Message:
        if is_training(message):
            files = (folder / "updates").rglob("*.safetensors")
            seen.append(sorted(str(file.relative_to(folder)) for file in files))
        return answer()

    federation.run(federation.study(), federation.sites("east", "south"), fault=look)
    assert seen == [
        [],
        ["updates/1/east.safetensors"],
        [],
        ["updates/2/east.safetensors"],
    ]
    assert not (folder / "updates").exists()


@pytest.mark.parametrize("stopped", [True, False])
def test_a_round_that_fails_leaves_nothing_of_its_own(stopped: bool, federation: Any) -> None:
    def fail(site: str, message: Message, answer: Answer) -> Message | None:
        if not is_training(message) or site == "east":
            return answer()
        if stopped:
            raise KeyboardInterrupt
        reply = answer()
        reply.content = type(reply.content)()
        return reply

    sites = federation.sites("east", "south")
    with pytest.raises((KeyboardInterrupt, QuorumError)):
        federation.run(federation.study(**ONE_ROUND), sites, fault=fail)
    left = {file.name for file in (federation.scratch / "run").iterdir()}
    assert left.isdisjoint({"updates", "waiting.json"})
    # What the sites spent stays.
    assert "federation_ledger.jsonl" in left


def test_what_a_killed_server_left_of_its_round_is_gone_when_the_run_goes_on(
    federation: Any,
) -> None:
    study, sites = federation.study(**ONE_ROUND), federation.sites("east", "south")

    def stop(site: str, message: Message, answer: Answer) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation.run(study, sites, fault=stop, run_id=RUN)
    folder: Path = federation.scratch / "run"
    (folder / "updates" / "1").mkdir(parents=True)
    (folder / "updates" / "1" / "east.safetensors").write_bytes(b"half of it")
    (folder / "waiting.json").write_text("{}")
    seen: list[bool] = []

    def look(site: str, message: Message, answer: Answer) -> Message:
        if not is_training(message):
            waiting = folder / "waiting.json"
            is_left = waiting.exists() and waiting.read_text() == "{}"
            seen.append((folder / "updates").exists() or is_left)
        return answer()

    finished = federation.run(study, sites, fault=look, resume=True, run_id=RUN)
    assert finished.outcomes() == {"east": ("admitted", ""), "south": ("admitted", "")}
    assert seen and not any(seen)
