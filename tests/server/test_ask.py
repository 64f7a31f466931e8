"""A question to many nodes: answers are handed over as they come, few at a time, in time."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfl.server import ask as exchange
from medfl.server.ask import PULLED_AT_ONCE, answers, ask, discard
from medfl.study.in_process_grid import InProcessGrid

pytestmark = pytest.mark.usefixtures("as_server")

NODES = tuple(range(2, 14))
Arrives = Callable[[int, int], bool]
"""Whether a node's answer is there at the n-th look of the server."""


def numbers(value: float) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.array([value], np.float32))})})


def value_of(message: Message) -> float:
    return float(message.content.array_records["arrays"]["w"].numpy()[0])


def echoing() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


def at_once(node: int, look: int) -> bool:
    return True


class SlowGrid(InProcessGrid):
    """Nodes that answer when a test says so, as on a SuperLink: what is there is pulled at once."""

    def __init__(self, *, arrives: Arrives = at_once) -> None:
        super().__init__(echoing(), node_configs={node: {} for node in NODES})
        self._arrives = arrives
        self._destinations: dict[str, int] = {}
        self._looks: dict[str, int] = {}
        self.pulls: list[list[str]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        names = list(super().push_messages(sent))
        self._destinations.update(
            zip(names, [message.metadata.dst_node_id for message in sent], strict=True)
        )
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        names = list(message_ids)
        self.pulls.append(names)
        there = []
        for name in names:
            self._looks[name] = self._looks.get(name, 0) + 1
            if self._arrives(self._destinations[name], self._looks[name]):
                there.append(name)
        yield from list(super().pull_messages(there))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again without waiting long."""
    monkeypatch.setattr(exchange, "POLL_SECONDS", 0.001)


def questions() -> dict[int, RecordDict]:
    return {node: numbers(float(node)) for node in NODES}


def heard(grid: InProcessGrid, *, timeout: float = 60.0) -> list[tuple[int, float]]:
    found = answers(grid, questions(), kind="train", group="1", timeout=timeout)
    return [(node, value_of(reply)) for node, reply in found]


def test_a_server_asks_for_few_answers_at_a_time() -> None:
    grid = SlowGrid()
    assert heard(grid) == [(node, float(node)) for node in NODES]
    assert max(len(names) for names in grid.pulls) == PULLED_AT_ONCE
    assert sum(len(names) for names in grid.pulls) == len(NODES)


def test_answers_are_handed_over_in_the_order_in_which_they_come() -> None:
    # The last node is there at the first look, the first one at the last.
    grid = SlowGrid(arrives=lambda node, look: look > max(NODES) - node)
    assert heard(grid) == [(node, float(node)) for node in reversed(NODES)]


def test_a_node_that_answered_is_not_asked_for_again() -> None:
    grid = SlowGrid(arrives=lambda node, look: node != 2 or look == 3)
    assert [node for node, _ in heard(grid)] == [*NODES[1:], 2]
    assert [len(names) for names in grid.pulls[3:]] == [1, 1]


def test_a_node_that_is_silent_at_the_deadline_is_absent() -> None:
    grid = SlowGrid(arrives=lambda node, _: node != 5)
    begin = time.monotonic()
    assert 5 not in dict(heard(grid, timeout=0.1))
    assert time.monotonic() - begin > 0.1


def test_every_node_is_looked_for_although_the_deadline_passed_while_others_were_heard() -> None:
    found = answers(SlowGrid(), questions(), kind="train", group="1", timeout=0.05)
    nodes = []
    for node, _ in found:
        time.sleep(0.01)
        nodes.append(node)
    assert nodes == list(NODES)


def test_without_questions_nobody_is_waited_for() -> None:
    assert ask(SlowGrid(), {}, kind="train", group="1", timeout=60.0) == {}


def test_an_answer_is_let_go_of_before_the_next_node_works() -> None:
    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Watched(InProcessGrid):
        def deliver(self, message: Message) -> Message | None:
            alive.append(sum(reference() is not None for reference in kept))
            return super().deliver(message)

    grid = Watched(echoing(), node_configs={node: {} for node in NODES})
    for _, reply in answers(grid, questions(), kind="train", group="1", timeout=60.0):
        kept.append(weakref.ref(reply.content.array_records["arrays"]["w"]))
        discard(reply)
    assert len(kept) == len(NODES)
    assert max(alive) == 0
