"""`Homework`: a running site makes a model of the hospital's own once a final model has come.

It reads what lies in the state folder, not messages: a model that came before a restart is found
as well, and whatever happens here can delay no answer. One model is made at a time, by a process
of its own with the lowest priority, which the system ends first where memory runs out.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from medfl.deployment.hospital.children import Child, start_child
from medfl.deployment.hospital.site_file import load_hospital
from medfl.deployment.hospital.site_log import SiteLog
from medfl.deployment.parent import SECRET_BYTES
from medfl.deployment.processes import stop
from medfl.errors import MedflError
from medfl.site.run_models import RunModels, finished_runs

MODULE = "medfl.deployment.hospital.home_adaptation"
TOLD = 1
"""Exit code of a process that has said itself why it failed."""

_LOWEST_PRIORITY = 19
_ENDED_FIRST = b"1000"


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A model in the making."""

    models: RunModels
    child: Child

    def end(self) -> None:
        """End the process if it goes on, and log its last lines."""
        stop(self.child.process)
        self.child.heard()
        if self.child.process.stdin is not None:
            self.child.process.stdin.close()


@dataclass(kw_only=True)
class Homework:
    """What is to be done with the final models of one site.

    A run is tried once: what failed is tried again when the site is started again.

    Attributes:
        site_file: The site's file, which is read again for each model.
        state: The state folder.
        log: The site's log.
        module: Whose `main` does the work; the site file and the run are its arguments.
    """

    site_file: Path
    state: Path
    log: SiteLog
    module: str = MODULE
    _seen: set[str] = field(default_factory=set)
    _at_work: _Work | None = None

    def __post_init__(self) -> None:
        """Models that are here already are no news, but work that was left undone."""
        if not self._is_wanted():
            self._seen |= {models.run for models in finished_runs(self.state)}

    def look(self) -> None:
        """Begin what is to be done, and note what has ended; returns at once."""
        if self._at_work is not None:
            code = self._at_work.child.process.poll()
            if code is None:
                return
            if code not in (0, TOLD):
                self._say_undone(self._at_work.models, f"its process ended with exit code {code}")
            self._at_work.end()
            self._at_work = None
        waiting = [models for models in finished_runs(self.state) if models.run not in self._seen]
        for models in waiting:
            self._seen.add(models.run)
            if models.own.exists():
                continue
            if self._is_wanted():
                self._begin(models)
                return
            self._tell(models)

    def close(self) -> None:
        """End what is under way; it begins again with the site."""
        if self._at_work is not None:
            self._at_work.end()

    def _is_wanted(self) -> bool:
        try:
            return load_hospital(self.site_file).adapt.after_study
        except MedflError as error:
            self.log.say(f"The hospital's own model is not made: {error}")
            return False

    def _begin(self, models: RunModels) -> None:
        self.log.say(
            f"The final model of {models.run} is in {models.federated}. The hospital's own model "
            "is now being made from it, at the lowest priority."
        )
        arguments = [str(self.site_file), models.run]
        try:
            process = start_child(self.module, arguments, secret=secrets.token_bytes(SECRET_BYTES))
        except OSError as error:
            self._say_undone(models, f"its process could not be started: {error.strerror}")
            return
        _give_way(process.pid)
        self._at_work = _Work(models=models, child=Child(process=process, log=self.log))

    def _say_undone(self, models: RunModels, found: str) -> None:
        self.log.say(
            f"No model of the hospital's own was made from {models.run}: {found}. The next start "
            "of the site tries again."
        )

    def _tell(self, models: RunModels) -> None:
        start = ["--start", str(models.start)] if models.start.exists() else []
        files = [str(self.site_file), str(models.federated), "-o", str(models.own), *start]
        self.log.say(
            f"The final model of {models.run} is in {models.federated}. To make the hospital's own "
            f"model from it: {shlex.join(['medfl', 'adapt', *files])}"
        )


def _give_way(process: int) -> None:
    """Let a process work only when nobody else does, and be the first to end without memory."""
    with contextlib.suppress(OSError):  # it may have ended
        os.setpriority(os.PRIO_PROCESS, process, _LOWEST_PRIORITY)
    with contextlib.suppress(OSError):  # Linux only
        Path(f"/proc/{process}/oom_score_adj").write_bytes(_ENDED_FIRST)
