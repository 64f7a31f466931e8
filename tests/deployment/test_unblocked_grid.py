"""A site whose answer is announced and never completed keeps nobody waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfl.deployment.coordinator.unblocked_grid import UnblockedGrid
from medfl.server.ask import answers
from medfl.study.in_process_grid import InProcessGrid

pytestmark = pytest.mark.usefixtures("as_server")

NODES = tuple(range(2, 8))
CUT_OFF = 3


def numbers(value: float) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.array([value], np.float32))})})


def echoing() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


class HalfUploaded(InProcessGrid):
    """As Flower's grid: whoever pulls the answer of one node waits until the upload goes on."""

    def __init__(self) -> None:
        super().__init__(echoing(), node_configs={node: {} for node in NODES})
        self.goes_on = threading.Event()
        self.waiting = 0
        self._name_of_half = ""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        names = list(super().push_messages(sent))
        for name, message in zip(names, sent, strict=True):
            if message.metadata.dst_node_id == CUT_OFF:
                self._name_of_half = name
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        names = list(message_ids)
        if self._name_of_half in names:
            self.waiting += 1
            self.goes_on.wait(60)
        yield from super().pull_messages(names)


@pytest.fixture
def half() -> Iterator[HalfUploaded]:
    grid = HalfUploaded()
    yield grid
    grid.goes_on.set()


def asked(grid: HalfUploaded, *, timeout: float) -> Iterator[int]:
    unblocked = UnblockedGrid(grid, patience=0.05)
    questions = {node: numbers(float(node)) for node in NODES}
    for node, reply in answers(unblocked, questions, kind="train", group="1", timeout=timeout):
        assert reply.content.array_records["arrays"]["w"].numpy()[0] == node
        yield node


def test_others_are_heard_and_the_deadline_holds(half: HalfUploaded) -> None:
    begin = time.monotonic()
    assert list(asked(half, timeout=1.0)) == [node for node in NODES if node != CUT_OFF]
    assert 1.0 < time.monotonic() - begin < 20
    assert half.waiting == 1


def test_an_upload_that_goes_on_in_time_is_heard_once(half: HalfUploaded) -> None:
    found = []
    for node in asked(half, timeout=60.0):
        found.append(node)
        if len(found) == len(NODES) - 1:
            half.goes_on.set()
    assert found == [*(node for node in NODES if node != CUT_OFF), CUT_OFF]
    assert half.waiting == 1


def test_what_flowers_grid_raises_reaches_who_asked() -> None:
    class Broken(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            raise ConnectionError(f"no server for {list(message_ids)}")

    grid = UnblockedGrid(Broken(echoing(), node_configs={2: {}}))
    with pytest.raises(ConnectionError, match="no server"):
        list(answers(grid, {2: numbers(0.0)}, kind="train", group="1", timeout=5.0))
