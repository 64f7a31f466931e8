"""`UnblockedGrid`: Flower's grid, where one site's slow upload delays nobody else's answer.

Flower announces an answer before its arrays are there, and its grid then waits for them, however
long that takes: three minutes for a site whose line is dead, without end for one that sends an
array now and then. Meanwhile the server would hear nobody else and miss the round's deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

PATIENCE_SECONDS = 2.0


class UnblockedGrid(Grid):
    """Pulls each answer in a thread of its own, and hands over those that are complete.

    Who asks again for an answer under way waits no longer. Memory holds as many answers as were
    asked for at once, and those that are under way for longer than `patience`.

    Args:
        grid: Flower's, for a SuperLink; several threads use it at once.
        patience: Seconds that a call waits for answers that it asked for first.
    """

    def __init__(self, grid: Grid, *, patience: float = PATIENCE_SECONDS) -> None:
        self._grid = grid
        self._patience = patience
        self._pulls: dict[str, _Pull] = {}

    # The class of a run has no public name.
    def set_run(self, run: Any) -> None:
        """Set the run (Flower's interface)."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run (Flower's interface)."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server (Flower's interface)."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes (Flower's interface)."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages (Flower's interface)."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The complete ones of these answers (Flower's interface).

        Raises:
            Exception: What Flower's grid raised.
        """
        names = list(message_ids)
        begun = [name for name in names if name not in self._pulls]
        self._pulls.update({name: _Pull(self._grid, name) for name in begun})
        deadline = time.monotonic() + self._patience
        for name in begun:
            self._pulls[name].wait(deadline - time.monotonic())
        for name in names:
            if self._pulls[name].is_over:
                yield from self._pulls.pop(name).found()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then wait for all (Flower's interface)."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class _Pull:
    """One answer on its way; the thread ends with the process if the answer never comes."""

    def __init__(self, grid: Grid, name: str) -> None:
        self._grid = grid
        self._name = name
        self._messages: list[Message] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._pull, daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        try:
            self._messages = list(self._grid.pull_messages([self._name]))
        except Exception as error:  # noqa: BLE001 - goes to the one who collects the answer
            self._error = error

    def wait(self, seconds: float) -> None:
        self._thread.join(max(seconds, 0))

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def found(self) -> list[Message]:
        if self._error is not None:
            raise self._error
        return self._messages
