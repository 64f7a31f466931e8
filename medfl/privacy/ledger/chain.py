"""A hash chain: each entry names the hash of the one before it, so that no past can be edited.

The chain shows that what is there belongs together; that its end is the true end is shown by a head
kept elsewhere (see `ledger_store`, and the server, which is told the head with every update).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medfl.errors import LedgerError

GENESIS = "0" * 64
"""In place of a hash before the first entry."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the chain.

    Attributes:
        sequence: Position, from 1.
        previous: Hash of the entry before it.
        time: When it was written, ISO 8601 in UTC; for people only, nothing is decided by it.
        kind: What it records.
        content: JSON types only.
    """

    sequence: int
    previous: str
    time: str
    kind: str
    content: Mapping[str, Any]

    @property
    def body(self) -> str:
        """The entry as canonical JSON: sorted keys, no spaces, shortest exact numbers."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def hash(self) -> str:
        """SHA-256 of the body, which contains the hash before it."""
        return hashlib.sha256(self.body.encode()).hexdigest()


def read_entry(
    body: str, *, sequence: int, previous: str, stored_hash: str, noun: str = "ledger"
) -> Entry:
    """Read an entry back and check its place in the chain.

    Args:
        body: The stored text.
        sequence: Position that it has to have.
        previous: Hash of the entry before it.
        stored_hash: Hash that was stored beside it.
        noun: What the chain is called.

    Raises:
        LedgerError: If anything about it was changed.
    """
    try:
        entry = Entry(**json.loads(body))
        intact = (
            entry.body == body
            and entry.sequence == sequence
            and entry.previous == previous
            and entry.hash == stored_hash
        )
    except (TypeError, ValueError):
        intact = False
    if not intact:
        raise LedgerError(
            f"Expected entry {sequence} of the {noun} as it was written, found it edited or "
            f"damaged. Nothing is computed until the {noun} is restored to its newest state."
        )
    return entry
