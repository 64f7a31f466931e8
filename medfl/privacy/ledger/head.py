"""The head of a ledger in a file of its own: it tells a restored old copy from the true ledger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import LedgerError

HEAD = "head.json"


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """Place and hash of the newest entry."""

    sequence: int
    hash: str


def read_head(folder: Path) -> LedgerHead:
    """Read the head.

    Raises:
        LedgerError: If it is missing or damaged.
    """
    path = folder / HEAD
    try:
        head = LedgerHead(**json.loads(path.read_text(encoding="utf-8")))
        intact = type(head.sequence) is int and head.sequence >= 1 and type(head.hash) is str
    except (OSError, TypeError, ValueError):
        intact = False
    if not intact:
        raise LedgerError(
            f"{path}: expected the head of the chain beside it, found none or a damaged one; "
            "without it an old copy could not be told from the newest."
        )
    return head


def write_head(folder: Path, head: LedgerHead) -> None:
    """Replace the head, durably and never by half.

    Raises:
        LedgerError: If it cannot be written.
    """
    path = folder / HEAD
    try:
        write_atomically(path, json.dumps(asdict(head)).encode(), mode=0o600)
    except OSError as error:
        raise LedgerError(f"{path}: the head of the chain could not be written: {error}.") from None
