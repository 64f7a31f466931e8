"""Every number of every file has two ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from medfl.config import SiteConfig, StudyConfig
from medfl.config.files import Section

ENDS = ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"})


def numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield path, schema
        for key, inner in schema.items():
            yield from numbers(inner, f"{path}/{key}")
    elif isinstance(schema, list):
        for number, inner in enumerate(schema):
            yield from numbers(inner, f"{path}/{number}")


@pytest.mark.parametrize("file", [SiteConfig, StudyConfig])
def test_every_number_has_a_smallest_and_a_largest_value(file: type[Section]) -> None:
    found = dict(numbers(file.model_json_schema()))
    assert len(found) > 10
    open_ended = [path for path, rule in found.items() if not all(end & set(rule) for end in ENDS)]
    assert open_ended == []
