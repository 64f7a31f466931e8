"""The grid in this process: Flower's interface, its private parts, and nobody's memory shared."""

from __future__ import annotations

import gc
import importlib.metadata
import inspect
import weakref
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medfl.server.ask import ask
from medfl.study.in_process_grid import InProcessGrid, run_in_process

NODES = {7: {"partition-id": 0}, 3: {"partition-id": 1}}


def app_that(answer: Any) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context)

    return app


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def numbers(values: list[float]) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.array(values, np.float32))})})


def values_of(record: RecordDict) -> list[float]:
    return list(record.array_records["arrays"]["w"].numpy())


def served(grid: InProcessGrid, work: Any) -> Any:
    """What `work` gives when it runs as a server over the grid."""
    app, results = ServerApp(), []

    @app.main()
    def main(given: Grid, _: Context) -> None:
        results.append(work(given))

    run_in_process(app, grid)
    return results[0]


def asked(grid: InProcessGrid, questions: dict[int, RecordDict], **arguments: Any) -> Any:
    usual: dict[str, Any] = {"kind": "train", "group": "1", "timeout": 5.0}
    return served(grid, lambda given: ask(given, questions, **{**usual, **arguments}))


def test_the_installed_flower_is_the_version_this_was_written_for() -> None:
    version = importlib.metadata.version("flwr")
    assert version.split(".")[:2] == ["1", "41"], (
        "The private parts of Flower that medfl.study.in_process_grid uses were checked with 1.41: "
        "check them again, then change this test and the pin in pyproject.toml."
    )


def test_the_private_parts_of_flower_do_what_is_expected_of_them() -> None:
    seen: list[str] = []

    def look(message: Message, context: Context) -> Message:
        seen.append(message.metadata.message_id)
        return echo(message, context)

    def work(given: Grid) -> Any:
        # Flower notes who runs in a place of its own; a message cannot be made without it.
        message = given.create_message(numbers([1.0]), "train", 3, "1", ttl=5.0)
        (identifier,) = given.push_messages([message])
        list(given.pull_messages([identifier]))
        return message.metadata, identifier, given.run.run_id

    metadata, identifier, run = served(InProcessGrid(app_that(look), node_configs=NODES), work)
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (1, 1, 3)
    assert run == 1
    assert seen == [identifier]


def test_the_grid_implements_flowers_whole_interface() -> None:
    assert not getattr(InProcessGrid, "__abstractmethods__", frozenset())
    for name, expected in inspect.getmembers(Grid, inspect.isfunction):
        if name.startswith("_"):
            continue
        found = inspect.signature(getattr(InProcessGrid, name))
        assert list(found.parameters) == list(inspect.signature(expected).parameters), name


def test_nodes_answer_in_the_order_in_which_they_are_asked() -> None:
    called: list[int] = []

    def remember(message: Message, context: Context) -> Message:
        called.append(context.node_id)
        return echo(message, context)

    grid = InProcessGrid(app_that(remember), node_configs=NODES)
    answers = asked(grid, {7: numbers([7.0]), 3: numbers([3.0])})
    assert called == [7, 3]
    assert {node: values_of(reply.content) for node, reply in answers.items()} == {
        3: [3.0],
        7: [7.0],
    }


def test_every_node_sees_its_own_configuration_and_keeps_its_own_state() -> None:
    def count(message: Message, context: Context) -> Message:
        before = context.state.get("seen", numbers([0.0])["arrays"])
        seen = float(before["w"].numpy()[0]) + 1
        context.state["seen"] = numbers([seen])["arrays"]
        partition = float(context.node_config["partition-id"])
        return Message(numbers([partition, seen]), reply_to=message)

    grid = InProcessGrid(app_that(count), node_configs=NODES)
    asked(grid, {3: numbers([0.0])})
    answers = asked(grid, {7: numbers([0.0]), 3: numbers([0.0])})
    assert values_of(answers[3].content) == [1.0, 2.0]
    assert values_of(answers[7].content) == [0.0, 1.0]


def test_no_node_shares_memory_with_the_server_or_another_node() -> None:
    kept: list[RecordDict] = []

    def scribble(message: Message, context: Context) -> Message:
        found = values_of(message.content)
        message.content["arrays"] = numbers([-1.0])["arrays"]
        message.content["intruder"] = ArrayRecord({})
        kept.append(message.content)
        return Message(numbers(found), reply_to=message)

    question = numbers([5.0])
    grid = InProcessGrid(app_that(scribble), node_configs=NODES)
    answers = asked(grid, {3: question, 7: question})
    assert values_of(question) == [5.0]
    assert list(question) == ["arrays"]
    # Both were sent the same, although the first one changed its own.
    assert {tuple(values_of(reply.content)) for reply in answers.values()} == {(5.0,)}


def test_a_reply_that_a_node_keeps_and_changes_stays_as_it_was_sent() -> None:
    kept: list[RecordDict] = []

    def keep(message: Message, context: Context) -> Message:
        kept.append(numbers([1.0]))
        return Message(kept[-1], reply_to=message)

    answers = asked(InProcessGrid(app_that(keep), node_configs={3: {}}), {3: numbers([0.0])})
    kept[-1]["arrays"] = numbers([9.0])["arrays"]
    assert values_of(answers[3].content) == [1.0]


def test_a_message_that_the_server_changes_after_sending_arrives_as_it_was_sent() -> None:
    question = numbers([1.0])
    grid = InProcessGrid(app_that(echo), node_configs={3: {}})

    def work(given: Grid) -> Any:
        message = given.create_message(question, "train", 3, "1", ttl=5.0)
        identifiers = given.push_messages([message])
        question["arrays"] = numbers([9.0])["arrays"]
        return list(given.pull_messages(identifiers))

    (reply,) = served(grid, work)
    assert values_of(reply.content) == [1.0]


def test_a_node_works_when_its_reply_is_pulled_and_not_before() -> None:
    called: list[int] = []

    def remember(message: Message, context: Context) -> Message:
        called.append(context.node_id)
        return echo(message, context)

    def work(given: Grid) -> Any:
        messages = [
            given.create_message(numbers([0.0]), "train", node, "1", ttl=5.0) for node in (3, 7)
        ]
        replies = iter(given.pull_messages(given.push_messages(messages)))
        before = list(called)
        next(replies)
        return before, list(called)

    grid = InProcessGrid(app_that(remember), node_configs=NODES)
    assert served(grid, work) == ([], [3])


def test_what_a_node_was_sent_is_let_go_of_with_its_answer() -> None:
    kept: list[weakref.ref[Any]] = []

    def read(message: Message, context: Context) -> Message:
        kept.append(weakref.ref(message.content.array_records["arrays"]["w"]))
        return Message(numbers([1.0]), reply_to=message)

    # What only the garbage collector would free may stay for many rounds.
    gc.disable()
    try:
        asked(InProcessGrid(app_that(read), node_configs=NODES), {3: numbers([0.0])})
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()


def test_a_reply_is_handed_out_once_and_names_its_question() -> None:
    grid = InProcessGrid(app_that(echo), node_configs=NODES)

    def work(given: Grid) -> Any:
        message = given.create_message(numbers([1.0]), "train", 3, "1", ttl=5.0)
        (identifier,) = given.push_messages([message])
        replies = list(given.pull_messages([identifier]))
        return identifier, replies, list(given.pull_messages([identifier]))

    identifier, replies, again = served(grid, work)
    assert [reply.metadata.reply_to_message_id for reply in replies] == [identifier]
    assert [reply.metadata.src_node_id for reply in replies] == [3]
    assert again == []


def test_push_and_pull_in_one_call_gives_the_replies() -> None:
    grid = InProcessGrid(app_that(echo), node_configs=NODES)

    def work(given: Grid) -> Any:
        message = given.create_message(numbers([1.0]), "train", 7, "1", ttl=5.0)
        return list(given.send_and_receive([message], timeout=1.0))

    assert [values_of(reply.content) for reply in served(grid, work)] == [[1.0]]


class SilentGrid(InProcessGrid):
    """One node never answers."""

    def deliver(self, message: Message) -> Message | None:
        return None if message.metadata.dst_node_id == 7 else super().deliver(message)


def test_a_silent_node_costs_the_timeout_and_no_more() -> None:
    grid = SilentGrid(app_that(echo), node_configs=NODES)
    answers = asked(grid, {3: numbers([1.0]), 7: numbers([1.0])}, timeout=0.05)
    assert set(answers) == {3}


class Chatty(InProcessGrid):
    """A node that answers every question twice, and one that answers without being asked."""

    def pull_messages(self, message_ids: Any) -> Any:
        replies = list(super().pull_messages(message_ids))
        if not replies:
            return []
        second = Message(numbers([-1.0]), reply_to=replies[0])
        stray = Message(numbers([-2.0]), reply_to=replies[0])
        second.metadata.__dict__.update(_src_node_id=replies[0].metadata.src_node_id)
        stray.metadata.__dict__.update(_src_node_id=99)
        return [stray, *replies, second]


def test_a_node_is_heard_once_and_a_stranger_not_at_all() -> None:
    grid = Chatty(app_that(echo), node_configs=NODES)
    answers = asked(grid, {3: numbers([3.0]), 7: numbers([7.0])})
    assert {node: values_of(reply.content) for node, reply in answers.items()} == {
        3: [3.0],
        7: [7.0],
    }


def test_a_failure_of_the_server_app_reaches_the_caller() -> None:
    grid = InProcessGrid(app_that(echo), node_configs=NODES)

    def work(given: Grid) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        served(grid, work)
