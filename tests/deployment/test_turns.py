"""A node finishes with each message before the next one, whatever happens to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import flwr.supernode.start_client_internal as supernode
import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from medfl.deployment.flower import turns
from medfl.deployment.flower.turns import take_turns
from medfl.deployment.thin_app import THIN_APP


class Node:
    """A node of its own, and the server that it talks to."""

    def __init__(self) -> None:
        self.store = ObjectStoreFactory().store()
        self.state = InMemoryNodeState(self.store)
        self.state.set_node_id(3)
        self.sent: list[Message] = []
        self.ended: set[int] = set()
        self.written = 0
        self.on_confirm: Callable[[], None] = lambda: None

    def get_run(self, number: int) -> Run:
        if number in self.ended:
            raise RunNotRunningException
        run = Run.create_empty(number)
        run.fab_hash, run.fab_id, run.fab_version = THIN_APP.digest, "medfl/medfl", "0"
        run.series_id = number
        return run

    def pull(self, run: int, *, ttl: float = 100.0) -> tuple[Message, int | None]:
        """Take a message of a run; what Flower's loop gets."""
        message = Message(RecordDict(), 3, "query", ttl=ttl, group_id=f"{run}")
        message.metadata.__dict__["_run_id"] = run
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {name: value.deflate() for name, value in get_all_nested_objects(message).items()}
        answer = supernode._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=self.get_run,
            get_fab=lambda *_: Fab(THIN_APP.digest, THIN_APP.content, {}),
            pull_object=lambda _, name: objects[name],
            confirm_message_received=lambda *_: self.on_confirm(),
            trusted_entities=None,
        )
        return message, answer

    def push(self) -> None:
        """Send the reply, as Flower's loop does next."""
        supernode._push_messages(
            state=self.state,
            object_store=self.store,
            send=lambda message, *_: (self.sent.append(message), (set(), ""))[1],
            push_object=lambda *_: None,
        )

    def start_task(self) -> int:
        """What the process of the one task does first."""
        (task,) = self.state.get_tasks(statuses=["pending"])
        assert self.state.claim_task(task.task_id)
        assert self.state.activate_task(task.task_id)
        (message,) = self.state.get_messages_legacy(is_reply=False)
        self.state.record_message_processing_start(message.metadata.message_id)
        return task.task_id

    def reply(self, message: Message, *, whole: bool = True) -> Callable[[], None]:
        """What the process does last; the part that is missing if it is not done whole."""
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.state.record_message_processing_end(message.metadata.message_id)
        self.state.store_message(reply)
        self.store.preregister(reply.metadata.run_id, get_object_tree(reply))

        def hand_over() -> None:
            for name, value in get_all_nested_objects(reply).items():
                self.store.put(name, value.deflate())

        if whole:
            hand_over()
        return hand_over

    def is_empty(self) -> bool:
        """Whether nothing is left of any message."""
        open_tasks = self.state.get_tasks(statuses=["pending", "starting", "running"])
        return not (open_tasks or self.state.msg_store or len(self.store))  # type: ignore[arg-type]


@pytest.fixture
def node(as_server: None, monkeypatch: pytest.MonkeyPatch) -> Node:
    for name in ("_pull_and_store_message", "_push_messages"):
        monkeypatch.setattr(supernode, name, getattr(supernode, name))
    monkeypatch.setattr(turns, "RUN_SECONDS", 0.2)
    monkeypatch.setattr(turns, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(turns, "END_SECONDS", 0.5)
    node = Node()
    take_turns(paid=lambda: node.written)
    return node


def raising(error: BaseException) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def code_of(message: Message) -> str:
    return str(message.error.reason) if message.has_error() else ""


def answered(node: Node, run: int) -> Message:
    """One message of a run that goes well, and what was sent for it."""
    message, answer = node.pull(run)
    assert answer == run
    task = node.start_task()
    node.reply(message)
    node.state.finish_task(task, SubStatus.COMPLETED, "")
    node.push()
    assert node.sent[-1].metadata.reply_to_message_id == message.metadata.message_id
    assert node.is_empty()
    return node.sent[-1]


def test_a_message_is_answered_and_nothing_is_left_of_it(node: Node) -> None:
    assert not answered(node, 7).has_error()
    assert not answered(node, 7).has_error()
    assert len(node.sent) == 2


@pytest.mark.parametrize("error", [RunNotRunningException(), OSError("away"), BaseException()])
def test_a_message_that_is_not_received_is_answered_now_and_not_one_message_late(
    error: BaseException, node: Node
) -> None:
    node.on_confirm = raising(error)
    message, answer = node.pull(7)
    assert answer == 7
    assert node.state.get_tasks(statuses=["pending"]) == []
    node.push()
    assert [code_of(sent) for sent in node.sent] == [turns.NOT_RECEIVED]
    assert node.sent[0].metadata.reply_to_message_id == message.metadata.message_id
    assert node.is_empty()
    node.on_confirm = lambda: None
    assert not answered(node, 8).has_error()


def test_a_signal_ends_the_node(node: Node) -> None:
    node.on_confirm = raising(SystemExit(0))
    with pytest.raises(SystemExit):
        node.pull(7)


def test_a_task_that_ends_without_a_whole_reply_is_answered_with_an_error(node: Node) -> None:
    for reply in (False, True):
        message, _ = node.pull(7)
        task = node.start_task()
        if reply:
            node.reply(message, whole=False)
        node.state.finish_task(task, SubStatus.FAILED, "")
        node.push()
        assert code_of(node.sent[-1]) == turns.NO_REPLY
        assert node.is_empty()


def test_a_task_that_ended_before_it_took_its_message_is_answered_too(node: Node) -> None:
    node.pull(7)
    (task,) = node.state.get_tasks(statuses=["pending"])
    node.state.finish_task(task.task_id, SubStatus.FAILED, "")
    node.push()
    assert code_of(node.sent[-1]) == turns.NO_REPLY


def test_a_reply_is_sent_once_it_is_whole(node: Node) -> None:
    message, _ = node.pull(7)
    node.start_task()
    hand_over = node.reply(message, whole=False)
    sending = threading.Thread(target=node.push)
    sending.start()
    time.sleep(0.2)
    assert node.sent == []
    hand_over()
    sending.join(timeout=20)
    assert [code_of(sent) for sent in node.sent] == [""]


def test_a_task_that_has_replied_may_end_by_itself(node: Node) -> None:
    message, _ = node.pull(7)
    task = node.start_task()
    node.reply(message)
    sending = threading.Thread(target=node.push)
    sending.start()
    time.sleep(0.2)
    assert len(node.sent) == 1
    assert node.state.finish_task(task, SubStatus.COMPLETED, "")
    sending.join(timeout=20)
    assert node.is_empty()


def test_a_task_whose_run_has_ended_loses_its_token_and_nothing_is_sent(node: Node) -> None:
    node.pull(7)
    task = node.start_task()
    node.ended.add(7)
    node.push()
    assert node.sent == []
    assert not node.state.acknowledge_task_heartbeat(task)
    assert node.is_empty()
    assert not answered(node, 8).has_error()


@pytest.mark.parametrize(("ttl", "is_kept"), [(100.0, True), (0.5, False)])
def test_who_has_paid_may_come_to_the_end_until_the_deadline(
    ttl: float, is_kept: bool, node: Node
) -> None:
    message, _ = node.pull(7, ttl=ttl)
    node.start_task()
    node.written += 1
    node.ended.add(7)
    sending = threading.Thread(target=node.push)
    sending.start()
    sending.join(timeout=1.5)
    assert sending.is_alive() == is_kept
    if is_kept:
        node.reply(message)
        sending.join(timeout=20)
    assert not sending.is_alive()
    assert len(node.sent) == is_kept
    assert node.is_empty()


def test_a_node_notices_and_drops_what_nobody_waits_for(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.pull(7)
    node.state.create_task(TaskType.CLIENT_APP, 7, THIN_APP.digest)
    with caplog.at_level(logging.WARNING):
        answered(node, 8)
    assert "nobody waits for" in caplog.text
