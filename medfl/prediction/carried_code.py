"""The part of medfl's own code that a bundle carries, so that both do the same with an image.

The modules are copied as they are, under another name: a bundle must run without medfl, and beside
an older or newer one.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import PurePosixPath

from medfl.version import __version__

SCRIPTS = "scripts"
"""The package of a bundle's code, by MONAI's convention."""

_HOME = "medfl"
_PACKAGE = f'"""Copied from medfl {__version__} (Apache-2.0) when this bundle was written."""\n'


def carried_code(entry: str) -> dict[PurePosixPath, str]:
    """A module of medfl, and every other one that it needs.

    Args:
        entry: Name of the module; it and those that it imports use ``from medfl.x import y`` with a
            module, not a package, as ``medfl.x``.

    Returns:
        Path below the bundle -> content.
    """
    waiting, sources = [entry], dict[str, str]()
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name], needed = _moved(inspect.getsource(importlib.import_module(name)))
            waiting += needed
    files: dict[PurePosixPath, str] = {}
    for name, source in sorted(sources.items()):
        path = PurePosixPath(SCRIPTS, *name.split(".")[1:]).with_suffix(".py")
        files[path] = source
        for folder in path.parents[:-1]:  # the last one is the bundle itself
            files[folder / "__init__.py"] = _PACKAGE
    return files


def _moved(source: str) -> tuple[str, list[str]]:
    """A module's text with medfl's imports taken from the bundle, and what it imports so."""
    lines = source.splitlines(keepends=True)
    needed = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{_HOME}."):
            needed.append(str(node.module))
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {_HOME}.", f"from {SCRIPTS}.", 1)
    return "".join(lines), needed
