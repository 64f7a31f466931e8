"""JSON that any reader takes: no infinity and no NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Write a value as JSON; an infinite number as the text ``inf``, which reads back as a float.

    Args:
        value: JSON types, with mappings and tuples.
        indent: As `json.dumps` takes it.

    Raises:
        ValueError: If a number is NaN.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
