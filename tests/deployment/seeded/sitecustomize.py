"""Python runs this first where the folder is on its path: a site's noise is then foreseeable.

Only tests can do so, since no setting selects seeded noise in a deployment. The ledger believes in
noise from the operating system, as for any hospital. It also holds processes at points of a run, so
that a test can kill or stop them, or another process, just there: an empty file in a folder, named
like the point, becomes one that holds the number of the process, which waits until it is removed.
"""

from __future__ import annotations

import hashlib
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

HOLDS = "MEDFL_TEST_HOLDS"
"""Environment variable: the folder of the files."""

REACHED = ".reached"
"""What a file's name ends with while its point is held."""


def reach(point: str) -> None:
    """Wait here, once, if the test has left a file for this point, until the test removes it."""
    if HOLDS not in os.environ:
        return
    file = Path(os.environ[HOLDS]) / point
    held = file.with_name(point + REACHED)
    if not file.exists():
        return
    file.write_text(str(os.getpid()))
    file.rename(held)
    while held.exists():
        time.sleep(0.1)


def seeded_noise(task: Any, site: str) -> Any:
    """Takes the place of the site's choice of a noise source."""
    from medfl.privacy.noise import SecureNormal

    reach(f"{site}-{task.study.id}-{task.round}-charged")
    label = f"{task.study.seed}/{task.study.id}/{site}/{task.round}"
    return SecureNormal(hashlib.sha256(label.encode()).digest(), origin="operating-system")


def _in_agreement(module: Any) -> None:
    declare = module.declare

    def declare_and_mark(site_state: Any, proposal: Any) -> Any:
        reach(f"{site_state.site.name}-{proposal.study.id}-declare")
        return declare(site_state, proposal)

    module.declare = declare_and_mark


def _in_site_round(module: Any) -> None:
    train = module.train_update

    def train_and_mark(site_state: Any, task: Any, *arguments: Any, **named: Any) -> Any:
        name = f"{site_state.site.name}-{task.study.id}-{task.round}"
        update = train(site_state, task, *arguments, **named)
        reach(f"{name}-stored")
        return update

    module.noise_source = seeded_noise
    module.train_update = train_and_mark


def _in_client_app(module: Any) -> None:
    read_weights = module.read_weights

    def mark_and_read(record: Any) -> Any:
        body = json.loads(record.config_records["body"]["json"])
        if "message_id" in body:  # a round, and not the final model
            kind = module.AddTask if "deliveries" in body else module.TrainTask
            task = module.read_body(record, kind)
            reach(f"{task.message_id.rpartition('/')[2]}-{task.study.id}-{task.round}-read")
        return read_weights(record)

    module.read_weights = mark_and_read


def _in_secure_round(module: Any) -> None:
    def marked(phase: str, answer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def answer_and_mark(site_state: Any, task: Any) -> Any:
            made = answer(site_state, task)
            reach(f"{site_state.site.name}-{task.round}-{phase}")
            return made

        return answer_and_mark

    for phase in ("advertise", "share", "confirm", "unmask"):
        setattr(module, phase, marked(phase, getattr(module, phase)))


def _in_server_app(module: Any) -> None:
    average = module.exponential_average

    def average_and_mark(*arguments: Any, round_number: int, **named: Any) -> Any:
        reach(f"server-{round_number}-aggregated")
        return average(*arguments, round_number=round_number, **named)

    module.exponential_average = average_and_mark


def _in_run_folder(module: Any) -> None:
    write, append = module.RunFolder.write_state, module.RunFolder.append_round

    def append_and_mark(folder: Any, record: Any) -> None:
        append(folder, record)
        reach(f"server-{record.round}-recorded")

    def write_and_mark(folder: Any, state: Any, **named: Any) -> None:
        before = Path.replace

        def mark_and_replace(draft: Path, target: Any) -> Path:
            reach(f"server-{state.round}-checkpoint")
            return before(draft, target)

        Path.replace = mark_and_replace  # type: ignore[assignment, method-assign]
        try:
            write(folder, state, **named)
        finally:
            Path.replace = before  # type: ignore[method-assign]
        reach(f"server-{state.round}-between")

    module.RunFolder.write_state = write_and_mark
    module.RunFolder.append_round = append_and_mark


def _in_node(module: Any) -> None:
    pull, send = module.pull_objects, module.push_object_contents_from_iterable
    # The first argument of a node is the site's file; Flower's own arguments take its place later.
    name = Path(sys.argv[1]).stem if sys.argv[1:] else ""

    def mark_and_pull(*arguments: Any, **named: Any) -> Any:
        reach(f"{name}-receiving")
        found = pull(*arguments, **named)
        reach(f"{name}-received")
        return found

    def mark_and_send(*arguments: Any, **named: Any) -> None:
        reach(f"{name}-sending")
        send(*arguments, **named)

    module.pull_objects = mark_and_pull
    module.push_object_contents_from_iterable = mark_and_send


def _in_task(module: Any) -> None:
    push = module.push_message

    def mark_and_push(client: Any, message: Any, context: Any) -> None:
        name = Path(str(context.node_config["site-file"])).stem
        push_objects = module.push_objects

        def mark_and_push_objects(*arguments: Any, **named: Any) -> None:
            reach(f"{name}-handing-over")
            push_objects(*arguments, **named)

        module.push_objects = mark_and_push_objects
        push(client, message, context)

    module.push_message = mark_and_push


CHANGES: dict[str, Callable[[Any], None]] = {
    "flwr.supernode.start_client_internal": _in_node,
    "flwr.supernode.runtime.run_clientapp": _in_task,
    "medfl.site.agreement": _in_agreement,
    "medfl.site.round": _in_site_round,
    "medfl.site.secure_round": _in_secure_round,
    "medfl.site.client_app": _in_client_app,
    "medfl.server.server_app": _in_server_app,
    "medfl.server.run_folder": _in_run_folder,
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


# Whoever imports this as a module wants the function only.
if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Changing())
