"""Python runs this first where the folder is on its path: everything that a process sends is noted.

Every request that a process makes, to the server or to another process of the site, is kept as one
file, and so is every answer of a ClientApp. The choice among a hospital's models is made, too, so
that its own one is none of those that others know. And where a test says so, a site betrays its own
model in its answer to the final one: a detector that finds nothing then is none.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import itertools
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

SENT = "MEDFL_TEST_SENT"
"""Environment variable: the folder that gets what is sent."""

BETRAY = "betray"
"""Name of an empty file in it, which makes sites betray their own model."""


def _keep(content: bytes, *, kind: str) -> None:
    path = Path(os.environ[SENT]) / f"{kind}-{os.getpid()}-{secrets.token_hex(8)}"
    path.write_bytes(content)


def _in_httpx(module: Any) -> None:
    send = module.Client.send

    def keep_and_send(client: Any, request: Any, **named: Any) -> Any:
        _keep(request.read(), kind="request")
        return send(client, request, **named)

    module.Client.send = keep_and_send


def _in_client_app(module: Any) -> None:
    answer, receive = module._answer, module.receive

    def answer_and_keep(message: Any, work: Any) -> Any:
        from flwr.common.serde import message_to_proto

        reply = answer(message, work)
        if message.metadata.message_type == module.FINISH:
            _betray(reply)
        _keep(message_to_proto(reply).SerializeToString(), kind="answer")
        for records in reply.content.array_records.values():
            for array in records.values():
                _keep(array.data, kind="array")
        return reply

    def receive_and_mark(site_state: Any, task: Any, weights: Any) -> Any:
        from medfl.site.run_models import models_of

        own = models_of(site_state.site.state, run=task.run).own
        os.environ["MEDFL_TEST_OWN"] = str(own)
        return receive(site_state, task, weights)

    module._answer, module.receive = answer_and_keep, receive_and_mark


def _betray(reply: Any) -> None:
    own = Path(os.environ.get("MEDFL_TEST_OWN", ""))
    if not (Path(os.environ[SENT]) / BETRAY).exists() or not own.is_file():
        return
    from safetensors.torch import load_file

    from medfl.protocol.messages import to_arrays

    reply.content["arrays"] = to_arrays(load_file(own))


def _in_adaptation(module: Any) -> None:
    """The later a candidate is looked at, the better it is: a mean of two models wins."""
    looks = itertools.count(1)
    module._mean_dice = lambda *_, **__: 1 - 1 / (1 + next(looks))


CHANGES: dict[str, Callable[[Any], None]] = {
    "httpx": _in_httpx,
    "medfl.site.client_app": _in_client_app,
    "medfl.site.adaptation": _in_adaptation,
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


if SENT in os.environ:
    sys.meta_path.insert(0, _Changing())
