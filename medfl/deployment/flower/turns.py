"""A SuperNode's messages in turn: each one is taken, answered and forgotten, whatever happens.

Flower's node believes that every task ends with a reply. Where the end of a run breaks off the pull
of a message, its task stays: the reply comes when the next message is at hand, and is sent in its
place, from then on always one message late. Where a task ends without a reply, or in the middle of
handing it over, the node never stops waiting. All that while it is shown as connected. So each turn
ends with nothing left, a turn that finds something left says so, and a task ends with its run.
Private names of Flower's: the steps of its SuperNode that pull a message and that push the reply,
and what the state of a node holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import flwr.supernode.start_client_internal as supernode
import httpx
from flwr.app import Error, Message
from flwr.app.user_config import UserConfig
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

POLL_SECONDS = 0.2
RUN_SECONDS = 10.0
"""How often the server is asked whether the run of the message at hand goes on."""

END_SECONDS = 5.0
"""How long a task may take to end after its reply; Flower's lets go of everything by then."""

NOT_RECEIVED = "message-not-received"
NO_REPLY = "task-without-reply"

_OPEN = (Status.PENDING, Status.STARTING, Status.RUNNING)

logger = logging.getLogger(__name__)


def take_turns(*, paid: Callable[[], Hashable]) -> None:
    """From now on, let this process' SuperNode finish with each message before the next one.

    Args:
        paid: Something that differs once the site has paid for more than before. Who has paid for a
            message may come to the end of it though its run has ended, until its deadline: a
            resumed run takes what was paid for, and would have to pay again for what was not kept.
    """
    pull, push = supernode._pull_and_store_message, supernode._push_messages
    turn: list[_Turn] = []

    def pull_in_turn(
        state: InMemoryNodeState,
        object_store: ObjectStore,
        node_config: UserConfig,
        receive: Callable[[], tuple[Message, ObjectTree] | None],
        get_run: Callable[[int], Run],
        get_fab: Callable[[str, int], Fab],
        pull_object: Callable[[int, str], bytes],
        confirm_message_received: Callable[[int, str], None],
        trusted_entities: dict[str, str] | None,
    ) -> int | None:
        if _forget(state, object_store):
            logger.warning(
                "Expected nothing in this site's queue, found a message or a task that nobody "
                "waits for; it was dropped."
            )
        turn.clear()

        def take() -> tuple[Message, ObjectTree] | None:
            answer = receive()
            if answer is not None:
                turn.append(
                    _Turn(
                        state=state,
                        store=object_store,
                        message=answer[0],
                        get_run=get_run,
                        paid=paid,
                        paid_before=paid(),
                    )
                )
            return answer

        try:
            run = pull(
                state=state,
                object_store=object_store,
                node_config=node_config,
                receive=take,
                get_run=get_run,
                get_fab=get_fab,
                pull_object=pull_object,
                confirm_message_received=confirm_message_received,
                trusted_entities=trusted_entities,
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if not turn:
                raise
            logger.warning("A message was not received: %s.", type(error).__name__)
            run = None
        if run is None and turn:
            turn[0].fail(NOT_RECEIVED)
            run = turn[0].message.metadata.run_id
        return run

    def push_in_turn(
        state: InMemoryNodeState,
        object_store: ObjectStore,
        send: Callable[[Message, ObjectTree, float], tuple[set[str], str]],
        push_object: Callable[[int, str, str, bytes], None],
    ) -> None:
        try:
            if turn[0].wait_for_reply():
                push(state=state, object_store=object_store, send=send, push_object=push_object)
                turn[0].wait_for_end()
        finally:
            _forget(state, object_store)

    supernode._pull_and_store_message = pull_in_turn  # type: ignore[assignment]
    supernode._push_messages = push_in_turn  # type: ignore[assignment]


@dataclass(kw_only=True)
class _Turn:
    """The message at hand.

    Attributes:
        state: The node's; it holds this message, its task and its reply, and nothing else.
        store: Where the objects of message and reply are.
        get_run: Asks the server about a run; raises if the run has ended.
        paid: See `take_turns`.
        paid_before: What it said before the message came.
    """

    state: InMemoryNodeState
    store: ObjectStore
    message: Message
    get_run: Callable[[int], Run]
    paid: Callable[[], Hashable]
    paid_before: Hashable
    _has_told: bool = False

    def wait_for_reply(self) -> bool:
        """Wait until there is a whole reply; False if there will be none, since the run has ended.

        A task that ended without one is answered with an error, so that the server knows at once.
        """
        asked = time.monotonic()
        while True:
            # In this order: a task hands over its reply, then it ends.
            is_over = self._is_over()
            if self._is_answered():
                return True
            if is_over:
                logger.warning("Expected a task that ends with a reply, found one without.")
                self.fail(NO_REPLY)
                return True
            if time.monotonic() - asked > RUN_SECONDS:
                asked = time.monotonic()
                if not self._is_wanted():
                    return False
            time.sleep(POLL_SECONDS)

    def wait_for_end(self) -> None:
        """Wait until a task that has replied is over, as it is a moment later."""
        deadline = time.monotonic() + END_SECONDS
        while not self._is_over() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def fail(self, code: str) -> None:
        """Answer with an error in place of whatever there is.

        Args:
            code: What the server is told.
        """
        _forget(self.state, self.store)
        # As Flower does around a task: without the times it would complain of their lack.
        self.state.store_message(self.message)
        self.state.record_message_processing_start(self.message.metadata.message_id)
        self.state.record_message_processing_end(self.message.metadata.message_id)
        reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, code), reply_to=self.message)
        supernode._insert_message(reply, self.state, self.store)

    def _is_over(self) -> bool:
        return not self.state.get_tasks(statuses=_OPEN)

    def _is_answered(self) -> bool:
        with self.state.lock_msg_store:
            messages = [entry.message for entry in self.state.msg_store.values()]
        return any(
            message.metadata.reply_to_message_id and self._is_whole(message) for message in messages
        )

    def _is_whole(self, reply: Message) -> bool:
        try:
            tree = self.store.get_object_tree(reply.metadata.message_id)
        except NoObjectInStoreError:
            return False
        return all(self.store.get(node.object_id) for node in iterate_object_tree(tree))

    def _is_wanted(self) -> bool:
        metadata = self.message.metadata
        try:
            self.get_run(metadata.run_id)
        except RunNotRunningException:
            in_time = time.time() < metadata.created_at + metadata.ttl
            return self._comes_to_its_end(in_time and self.paid() != self.paid_before)
        except (httpx.HTTPError, ValueError):
            pass  # no word of an end
        return True

    def _comes_to_its_end(self, is_kept: bool) -> bool:
        run = self.message.metadata.run_id
        if not is_kept:
            logger.info("Run %d has ended; what was begun for it is being stopped.", run)
        elif not self._has_told:
            logger.info("Run %d has ended; its round was charged and will be completed.", run)
            self._has_told = True
        return is_kept


def _forget(state: InMemoryNodeState, store: ObjectStore) -> bool:
    """Leave no message, no reply and no unfinished task; whether there was one.

    The end of a task takes its token away; the runner of ClientApps then ends its process.
    """
    tasks = state.get_tasks(statuses=_OPEN)
    for task in tasks:
        state.finish_task(task.task_id, SubStatus.STOPPED, "")
        state.delete_sessions_in_run(task.run_id)
    with state.lock_msg_store:
        had_any = bool(tasks or state.msg_store)
        state.delete_messages()
        store.clear()
    return had_any
