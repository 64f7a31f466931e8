"""One question to many nodes, with a deadline.

Flower's own loops wait for ever for missing nodes and give messages a life of twelve hours, so that
a straggler would later train stale rounds; here every message dies with its deadline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from medfl.errors import QuorumError

POLL_SECONDS = 0.2


def wait_for_nodes(grid: Grid, *, minimum: int, timeout: float) -> list[int]:
    """Wait until enough nodes are connected.

    Args:
        grid: The grid.
        minimum: Nodes needed.
        timeout: Seconds to wait at most.

    Returns:
        All connected nodes, in ascending order.

    Raises:
        QuorumError: If there are too few at the deadline.
    """
    deadline = time.monotonic() + timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= minimum:
            return nodes
        if time.monotonic() > deadline:
            raise QuorumError(
                f"Expected at least {minimum} connected sites after {timeout:g} s, "
                f"found {len(nodes)}."
            )
        time.sleep(POLL_SECONDS)


def ask(
    grid: Grid, questions: Mapping[int, RecordDict], *, kind: str, group: str, timeout: float
) -> dict[int, Message]:
    """Send one message to each node and collect the answers.

    Args:
        grid: The grid.
        questions: Content by node.
        kind: Flower's message type: ``query``, ``train`` or ``evaluate``.
        group: Name of the round, for Flower's own log.
        timeout: Seconds after which a message is void.

    Returns:
        The answers by node; a node that did not answer in time is absent. A node that answers
        twice is heard once.
    """
    messages = [
        Message(content, node, kind, ttl=timeout, group_id=group)
        for node, content in sorted(questions.items())
    ]
    deadline = time.monotonic() + timeout
    waiting = set(grid.push_messages(messages))
    answers: dict[int, Message] = {}
    while waiting:
        for reply in grid.pull_messages(sorted(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            node = reply.metadata.src_node_id
            if node in questions:
                answers.setdefault(node, reply)
        if not waiting or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    return answers
