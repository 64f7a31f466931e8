"""`Planting`: changes of the code that runs in this process, and the way back.

No file is edited. A function is compiled again from its own source with some lines changed, and
whoever holds the function, under whatever name, runs the changed lines from then on. Lines that are
not there any more are an error, so that no bug is planted in vain after the code was rewritten.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Literal

_ANNOTATIONS = __future__.annotations.compiler_flag

Group = Literal["noise", "clipping", "draws", "patients", "ledger", "secure"]


class Planting:
    """What was changed in this process."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._edited: set[FunctionType] = set()

    def exchange(self, owner: object, name: str, value: object) -> None:
        """Put something else under a name of a module or class."""
        before = inspect.getattr_static(owner, name)
        self._undo.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def edit(self, function: Callable[..., Any], *changes: tuple[str, str]) -> None:
        """Change lines of a function.

        Args:
            function: A function or a method, decorated or not.
            changes: Text that appears once in its source, and what stands there instead.

        Raises:
            ValueError: If a text does not appear exactly once, or the function was edited before.
        """
        plain = inspect.unwrap(getattr(function, "__func__", function))
        if not isinstance(plain, FunctionType) or plain in self._edited:
            raise ValueError(f"Expected a function that is edited once, found {plain!r}.")
        before = plain.__code__
        plain.__code__ = _compiled(plain, changes)
        self._edited.add(plain)
        self._undo.append(lambda: setattr(plain, "__code__", before))

    def undo(self) -> None:
        """Restore everything."""
        while self._undo:
            self._undo.pop()()
        self._edited.clear()


Plant = Callable[[Planting], None]


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A mistake that somebody could make in the code that users run.

    Attributes:
        name: In the table.
        group: Which part of the code is wrong.
        sentence: What the code does instead.
        plant: Makes it do that.
    """

    name: str
    group: Group
    sentence: str
    plant: Plant


def edited(function: Callable[..., Any], *changes: tuple[str, str]) -> Plant:
    """A bug that is a few changed lines of one function."""
    return lambda planting: planting.edit(function, *changes)


def together(*plants: Plant) -> Plant:
    """A bug that changes several places."""

    def plant(planting: Planting) -> None:
        for part in plants:
            part(planting)

    return plant


def _compiled(function: FunctionType, changes: tuple[tuple[str, str], ...]) -> CodeType:
    lines, first = inspect.getsourcelines(function)
    source = "".join(lines)
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(
                f"{function.__qualname__}: expected once {old!r}, found it {source.count(old)} "
                "times. The code was rewritten: write the bug anew."
            )
        source = source.replace(old, new)
    tree = ast.parse(textwrap.dedent(source))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)  # noqa: S101  what inspect returned
    definition.decorator_list.clear()
    ast.increment_lineno(tree, first - 1)
    module = compile(
        tree,
        function.__code__.co_filename,
        "exec",
        flags=_ANNOTATIONS,
        dont_inherit=True,
    )
    return next(
        constant
        for constant in module.co_consts
        if isinstance(constant, CodeType) and constant.co_name == function.__name__
    )
