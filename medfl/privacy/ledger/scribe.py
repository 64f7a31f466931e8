"""`Scribe`: who writes down for an auditor what a ledger was used for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from medfl.privacy.ledger.chain import Entry


class Scribe(Protocol):
    """Copies the ledger's entries; called outside of every lock."""

    def prepare(self, ledger: Sequence[Entry]) -> None:
        """Called before something is agreed to or charged.

        Raises:
            LedgerError: If it could not be written down; nothing is agreed to or charged then.
        """

    def follow(self, ledger: Sequence[Entry]) -> None:
        """Called after an entry was written, with all of them; never raises."""
