"""Numbers on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import typer

LARGEST_SEED = 2**63 - 1

Numbers = TypeVar("Numbers", float, tuple[float, float, float])


def finite(value: Numbers) -> Numbers:
    """Refuse NaN, which no range of an option excludes, since every comparison with it is false.

    Raises:
        typer.BadParameter: If a number is NaN or infinite.
    """
    numbers: Sequence[float] = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if not math.isfinite(number):
            raise typer.BadParameter(f"expected a finite number, found {number}.")
    return value
