"""One question to many nodes, with a deadline.

Flower's own loops wait indefinitely for missing nodes and keep messages for twelve hours, so that
a straggler would later train stale rounds; here every message dies with its deadline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

POLL_SECONDS = 0.2
# A SuperLink hands out everything that has come under the names that it is asked for.
PULLED_AT_ONCE = 4


def answers(
    grid: Grid, questions: Mapping[int, RecordDict], *, kind: str, group: str, timeout: float
) -> Iterator[tuple[int, Message]]:
    """Send one message to each node and hand over the answers as they come.

    Memory holds `PULLED_AT_ONCE` answers and what the caller keeps of them.

    Args:
        grid: The grid.
        questions: Content by node, in the order in which they are asked.
        kind: Flower's message type: ``query``, ``train`` or ``evaluate``.
        group: Name of the round, for Flower's own log.
        timeout: Seconds after which a message is void.

    Yields:
        Node and answer, in any order; a node that did not answer in time is absent. A node that
        answers twice is heard once.
    """
    messages = [
        Message(content, node, kind, ttl=timeout, group_id=group)
        for node, content in questions.items()
    ]
    deadline = time.monotonic() + timeout
    # Keys of a dictionary, which stay in the order of the questions.
    waiting = dict.fromkeys(grid.push_messages(messages))
    unheard = set(questions)
    while waiting:
        for names in _groups(list(waiting)):
            for reply in grid.pull_messages(names):
                waiting.pop(reply.metadata.reply_to_message_id, None)
                node = reply.metadata.src_node_id
                if node in unheard:
                    unheard.discard(node)
                    yield node, reply
        if not waiting or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)


def ask(
    grid: Grid, questions: Mapping[int, RecordDict], *, kind: str, group: str, timeout: float
) -> dict[int, Message]:
    """All answers at once, for those that carry no weights; see `answers`."""
    return dict(answers(grid, questions, kind=kind, group=group, timeout=timeout))


def discard(message: Message) -> None:
    """Empty a message that was dealt with.

    Flower's views of a record and the record refer to each other, so that its arrays would stay in
    memory until Python looks for such cycles, which may be many rounds later.
    """
    if message.has_content():
        for record in message.content.values():
            record.clear()


def _groups(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(names), PULLED_AT_ONCE):
        yield names[begin : begin + PULLED_AT_ONCE]
