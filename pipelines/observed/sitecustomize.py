"""Python runs this first where its folder is on the path: notes what a federation benchmark needs.

Sites and server of a benchmark run in processes that Flower starts, so this is how each of them
tells how long it trained and how much memory it took. Nothing of what they compute is changed.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from resident_memory import forget_peak, peak_bytes, resident_bytes

FOLDER = "MEDFL_BENCHMARK_NOTES"
"""Environment variable: the folder of the notes, one file a process."""


def note(**values: Any) -> None:
    """Append one line to the notes of this process."""
    path = Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def _in_site_round(module: Any) -> None:
    """The noisy steps of a round, without what a site does before and after them."""
    train_update, train_round = module.train_update, module.train_round

    # Two notes, since Ray sends copies of functions to its processes: they cannot share a variable.
    def timed_round(*arguments: Any, **named: Any) -> Any:
        begin = time.monotonic()
        try:
            return train_round(*arguments, **named)
        finally:
            note(kind="training", seconds=time.monotonic() - begin)

    def noted_update(site_state: Any, task: Any, *arguments: Any, **named: Any) -> Any:
        update = train_update(site_state, task, *arguments, **named)
        note(kind="update", round=task.round)
        return update

    module.train_update, module.train_round = noted_update, timed_round


def _in_server_app(module: Any) -> None:
    """Memory of the process that holds the server, above what it holds after its imports."""
    serve_study = module.serve_study

    def watched(*arguments: Any, **named: Any) -> Any:
        pid = os.getpid()
        forget_peak(pid)
        base = resident_bytes(pid)
        try:
            return serve_study(*arguments, **named)
        finally:
            note(kind="server", base_bytes=base, peak_bytes=peak_bytes(pid))

    module.serve_study = watched


_WATCHED: dict[str, Callable[[Any], None]] = {
    "medfl.site.round": _in_site_round,
    "medfl.server.server_app": _in_server_app,
}


class _Watching(importlib.abc.MetaPathFinder):
    """Finds the watched modules as Python would, and adds the notes once they are loaded."""

    def __init__(self) -> None:
        self._finding = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if self._finding or name not in _WATCHED:
            return None
        self._finding = True
        try:
            spec: Any = importlib.util.find_spec(name)
        finally:
            self._finding = False
        load = spec.loader.exec_module

        def load_and_watch(module: ModuleType) -> None:
            load(module)
            _WATCHED[name](module)

        spec.loader.exec_module = load_and_watch
        return spec  # type: ignore[no-any-return]


if FOLDER in os.environ:
    sys.meta_path.insert(0, _Watching())
