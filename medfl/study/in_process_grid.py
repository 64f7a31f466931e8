"""A Flower `Grid` in this process: the sites' apps are called directly, one after the other.

The same ServerApp and ClientApp run here, on Flower's simulation runtime and on a real SuperLink.
Every private import of Flower's that this needs is in this module, and a test holds it against
the installed version.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from medfl.server.ask import discard

_SERVER_NODE = 1
_RUN = 1


class InProcessGrid(Grid):
    """Delivers each message when its reply is pulled, so that one reply is in memory at a time.

    Args:
        client_app: The sites' app.
        node_configs: What each node's launcher would tell it, by node id.
    """

    def __init__(
        self, client_app: ClientApp, *, node_configs: Mapping[int, Mapping[str, int]]
    ) -> None:
        self._client_app = client_app
        self._contexts = {
            node: Context(
                run_id=_RUN,
                node_id=node,
                node_config=dict(config),
                state=RecordDict(),
                run_config={},
            )
            for node, config in node_configs.items()
        }
        self._sent: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._run = Run.create_empty(_RUN)

    def set_run(self, run: Run) -> None:
        """Set the run (Flower's interface)."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run (Flower's interface)."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server (Flower's interface)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes (Flower's interface)."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; a node gets its own when its reply is pulled (Flower's interface)."""
        identifiers = []
        for message in messages:
            identifier = f"message-{next(self._numbers)}"
            # A copy, so that no node shares memory with the server or with another node; the bytes
            # of arrays never change, and copies share them.
            sent = copy.deepcopy(message)
            sent.metadata.__dict__["_message_id"] = identifier
            self._sent[identifier] = sent
            identifiers.append(identifier)
        return identifiers

    def deliver(self, message: Message) -> Message | None:
        """Call one node's app; None if the node stays silent."""
        return self._client_app(message, self._contexts[message.metadata.dst_node_id])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Let each node answer when its reply is wanted, and never two of them at once.

        Every reply is handed out once (Flower's interface).
        """
        for name in list(message_ids):
            message = self._sent.pop(name, None)
            if message is None:
                continue
            # Sites work one after the other here: the time of each begins when its turn comes.
            message.metadata.created_at = time.time()
            reply = copy.deepcopy(self.deliver(message))
            discard(message)
            if reply is not None:
                yield reply

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull (Flower's interface); replies are there at once or never."""
        del timeout
        return list(self.pull_messages(self.push_messages(messages)))


def run_in_process(server_app: ServerApp, grid: InProcessGrid) -> None:
    """Run a ServerApp over a grid in this process."""
    TaskIdentity.run_id = _RUN
    TaskIdentity.node_id = _SERVER_NODE
    TaskIdentity.task_id = _RUN
    context = Context(
        run_id=_RUN, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config={}
    )
    server_app(grid, context)
