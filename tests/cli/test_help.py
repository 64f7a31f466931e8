"""What the help of every command says on a terminal of 80 columns."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from medfl.cli.app import app
from medfl.cli.examples import EXAMPLES

COLUMNS = 80


def commands(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = (*above, name)
        if hasattr(command, "commands"):
            yield from commands(command, path)
        else:
            yield " ".join(path), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@functools.cache
def page(path: str) -> str:
    """The help of a command."""
    terminal = {"COLUMNS": str(COLUMNS), "TERM": "dumb"}
    result = CliRunner().invoke(app, [*path.split(), "--help"], env=terminal)
    assert result.exit_code == 0
    return result.output


def words(text: str) -> str:
    """The words of a page or of a text, without frames, marks of code, and the breaks of lines."""
    return " ".join(re.sub(r"[│╭╮╰╯─*`]", " ", text).split())


@pytest.mark.parametrize("path", COMMANDS)
def test_every_argument_and_option_has_its_text(path: str) -> None:
    shown = words(page(path))
    for parameter in COMMANDS[path].params:
        text = getattr(parameter, "help", None)
        assert text, parameter.name
        for word in words(text).split():  # beside a column of its own, which breaks sentences
            assert word in shown, (parameter.name, word)


@pytest.mark.parametrize("path", COMMANDS)
def test_no_line_ends_before_it_is_full(path: str) -> None:
    text = page(path).split("╭")[0]
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        for line, following in itertools.pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) > COLUMNS - 2, (line, following)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_an_example_that_it_understands(
    path: str,
) -> None:
    assert words(f"Example: medfl {path} {EXAMPLES[path]}") in words(page(path))
    context = COMMANDS[path].make_context(path, shlex.split(EXAMPLES[path]))
    given = [name for name, value in context.params.items() if value is not None]
    assert isinstance(context, click.Context)
    assert given or not context.params  # of a command that takes nothing


def test_no_example_is_of_a_command_that_is_gone() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.slow
def test_the_package_runs_as_a_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "medfl", "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("medfl ")
