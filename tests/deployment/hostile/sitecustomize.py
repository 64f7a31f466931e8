"""Python runs this first where the folder is on its path: a server and sites are then hostile.

Only in the study `STUDY`, and each in one way a round: what the server sends to one site is not
what was agreed, and what a site sends is not what it computed. Everything else is as installed.
Private names of Flower's: the step of its SuperNode that uploads the objects of a reply, and the
check of a run's settings, which a hostile server does without.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

STUDY = "hostile"
TEXT = "\x1b[2J\x07 /images/MUELLER^ANNA\n" * 4_000
"""More than 100 KB with control characters and a name."""

FOLDER = "MEDFL_TEST_HOSTILE"
"""Environment variable: a folder that a mark is left in when an upload was cut off."""

OBJECTS_UPLOADED = 3
POLLED_SECONDS = 3.0
_CUT_OFF = "cut-off"


class TextualError(BaseException):
    """Passes by whatever turns a site's exceptions into codes."""


def _in_server_app(module: Any) -> None:
    questions_of = module._questions

    def hostile_questions(tasks: Any, **named: Any) -> Any:
        from flwr.app import RecordDict

        from medfl.protocol.messages import to_arrays, to_record

        questions = questions_of(tasks, **named)
        for site, task in tasks.items():
            if task.study.id != STUDY or task.round != 2:
                continue
            if site == "east":  # weights beyond any model
                bomb = {name: value + 1e30 for name, value in named["weights"].items()}
                arrays = {"arrays": to_arrays(bomb)}
                questions[site] = RecordDict({**to_record(task), **arrays})
            if site == "north":  # the name of the round before
                replayed = task.model_copy(
                    update={"message_id": task.message_id.replace("/2/", "/1/")}
                )
                questions[site] = RecordDict({**questions[site], **to_record(replayed)})
        return questions

    module._questions = hostile_questions


def _in_site_round(module: Any) -> None:
    train = module.train_update

    def hostile_train(site_state: Any, task: Any, *arguments: Any, **named: Any) -> Any:
        update, weights = train(site_state, task, *arguments, **named)
        if task.study.id == STUDY:
            from medfl.protocol.messages import weights_digest

            here = (site_state.site.name, task.round)
            if here == ("east", 1):  # as if its ledger had been charged for nothing
                update = update.model_copy(update={"run_steps": 0}).signed(site_state.keys)
            if here == ("south", 1):
                weights = {name: value * float("nan") for name, value in weights.items()}
                digest = weights_digest(weights)
                update = update.model_copy(update={"weights_digest": digest})
                update = update.signed(site_state.keys)
            if here == ("north", 3):
                raise TextualError
            if here == ("south", 3):
                (site_state.site.state / _CUT_OFF).touch()
        return update, weights

    module.train_update = hostile_train


def _in_client_app(module: Any) -> None:
    answer = module._answer

    def textual_answer(message: Any, work: Any) -> Any:
        try:
            return answer(message, work)
        except TextualError:
            raise RuntimeError(TEXT) from None

    module._answer = textual_answer


def _in_supernode(module: Any) -> None:
    push = module.push_object_contents_from_iterable

    def cut_off_push(contents: Iterator[tuple[str, bytes]], *arguments: Any, **named: Any) -> None:
        mark = Path(os.environ["FLWR_HOME"]).parent / _CUT_OFF
        push(_until_cut_off(contents) if mark.exists() else contents, *arguments, **named)

    module.push_object_contents_from_iterable = cut_off_push


def _until_cut_off(contents: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    for number, content in enumerate(contents):
        if number == OBJECTS_UPLOADED:
            _mark().touch()
            raise ConnectionError("cut off in the middle of an upload")
        yield content


def _mark() -> Path:
    return Path(os.environ[FOLDER]) / _CUT_OFF


def _in_exchange(module: Any) -> None:
    """The deadline of a round comes once all others have answered, so that nobody waits for it.

    The server asks for the answer whose upload was cut off for some seconds before.
    """
    answers, clock, heard = module.answers, module.time, []

    def counted(*arguments: Any, **named: Any) -> Iterator[Any]:
        heard.clear()
        for answer in answers(*arguments, **named):
            heard.append(answer)
            yield answer

    def is_over() -> bool:
        marked = _mark()
        return len(heard) == 2 and marked.exists() and _age(marked) > POLLED_SECONDS

    class Clock:
        sleep = staticmethod(clock.sleep)

        @staticmethod
        def monotonic() -> float:
            return float(clock.monotonic() + (1e6 if is_over() else 0.0))

    module.answers, module.time = counted, Clock


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime


def _in_config(module: Any) -> None:
    def unchecked(main: Any, override: Any, check_keys: bool = True) -> Any:
        return main | override

    module.fuse_dicts = unchecked


CHANGES: dict[str, Callable[[Any], None]] = {
    "medfl.server.ask": _in_exchange,
    "medfl.server.server_app": _in_server_app,
    "medfl.site.round": _in_site_round,
    "medfl.site.client_app": _in_client_app,
    "flwr.common.config": _in_config,
    "flwr.supernode.start_client_internal": _in_supernode,
}


class _Changing(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self._finding = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if self._finding or name not in CHANGES:
            return None
        self._finding = True
        try:
            spec: Any = importlib.util.find_spec(name)
        finally:
            self._finding = False
        run = spec.loader.exec_module

        def run_and_change(module: ModuleType) -> None:
            run(module)
            CHANGES[name](module)

        spec.loader.exec_module = run_and_change
        return spec  # type: ignore[no-any-return]


sys.meta_path.insert(0, _Changing())
