"""No number on the command line is without a range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer

from medfl.cli.app import app


def numbers(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every parameter that takes numbers, with its command."""
    for name, command in group.commands.items():
        path = (*above, name)
        if hasattr(command, "commands"):
            yield from numbers(command, path)
            continue
        for parameter in command.params:
            kinds = getattr(parameter.type, "types", [parameter.type])
            if any(kind.name.startswith(("int", "float")) for kind in kinds):
                yield f"{' '.join(path)} {parameter.opts[0]}", (command, parameter)


NUMBERS = dict(numbers(typer.main.get_command(app)))


@pytest.mark.parametrize("option", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e309", "-1e18", str(2**64), "0x10", "x"])
def test_absurd_numbers_are_refused_by_the_option(option: str, value: str) -> None:
    command, parameter = NUMBERS[option]
    given = (value,) * parameter.nargs if parameter.nargs > 1 else value
    with pytest.raises(click.UsageError):
        parameter.process_value(click.Context(command), given)


def test_there_are_numbers_to_try() -> None:
    assert len(NUMBERS) >= 8
