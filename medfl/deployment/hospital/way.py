"""`Way`: why a running site has no connection, in one plain line at once and every few minutes.

Flower retries endlessly and says only that it does. So while its node has no connection, the way
is gone once more from the outside: name, proxy, port, certificate.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medfl.deployment.flower.log_lines import CONNECTED, UNCONNECTED
from medfl.deployment.hospital.connection import Connection, forget_connection, note_connection
from medfl.deployment.hospital.site_log import SiteLog
from medfl.findings import Finding

REPEAT_SECONDS = 300.0
"""After how long the same reason is said again."""

LOOK_SECONDS = 20.0
"""How often the way is gone while there is no connection."""

_POLL_SECONDS = 0.5

LookAtWay = Callable[[], Sequence[Finding]]
"""What `medfl check --server` finds on the way to the server."""


class Way:
    """Watches the connection of one site, in a thread of its own since a look may take a minute.

    Args:
        server: ``HOST:PORT``.
        look: Goes the way.
        log: Where the reason is said.
        state: The site's state folder, where others read whether there is a connection.
    """

    def __init__(self, server: str, *, look: LookAtWay, log: SiteLog, state: Path) -> None:
        self._server = server
        self._look = look
        self._log = log
        self._state = state
        self._connection = Connection.now(connected=False)
        note_connection(state, self._connection)
        self._connected = threading.Event()
        self._has_failed = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def notice(self, line: str) -> None:
        """Take note of what a line of the node's log says about the connection."""
        if UNCONNECTED.search(line):
            self._has_failed = True
            self._connected.clear()
            self._note(connected=False)
        elif CONNECTED.search(line):
            self._has_failed = False
            self._connected.set()
            self._note(connected=True)

    @property
    def connection(self) -> Connection:
        """Whether there is one, and since when."""
        return self._connection

    def close(self) -> None:
        """Say nothing more."""
        self._closed.set()
        forget_connection(self._state)

    def _note(self, *, connected: bool) -> None:
        if connected != self._connection.connected:
            self._connection = Connection.now(connected=connected)
            note_connection(self._state, self._connection)

    def _watch(self) -> None:
        said, said_at = "", -math.inf
        while not self._closed.wait(_POLL_SECONDS):
            if self._connected.is_set():
                said = ""
                continue
            reason = self._reason()
            is_due = reason != said or time.monotonic() - said_at >= REPEAT_SECONDS
            gone = self._connected.is_set() or self._closed.is_set()
            if reason and is_due and not gone:
                self._log.say(f"No connection to {self._server}: {reason} The site keeps trying.")
                said, said_at = reason, time.monotonic()
            self._closed.wait(LOOK_SECONDS)

    def _reason(self) -> str:
        """Why there is no connection; empty if nothing is known to be wrong."""
        findings = self._look()
        notes = [finding.value for finding in findings if finding.severity == "note"]
        for finding in findings:
            if finding.severity == "error":
                way = f" ({'; '.join(notes)})" if notes else ""
                return f"expected {finding.rule}, found {finding.value}{way}. {finding.fix}"
        if self._has_failed:
            return "the server answers, but takes no hospitals yet."
        return ""
