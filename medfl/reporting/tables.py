"""`Table`: rows of plain text, which the page escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

MAX_ROUNDS = 8  # shown of a long study
NOTHING = "–"

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Plain text cells; the first cell of a row is its header."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def spread(items: Sequence[Item]) -> list[Item]:
    """At most `MAX_ROUNDS` items, evenly spread from the first to the last."""
    indices = np.linspace(0, len(items) - 1, num=min(MAX_ROUNDS, len(items))).round()
    return [items[int(index)] for index in indices]
