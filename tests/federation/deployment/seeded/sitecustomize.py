"""Python runs this first where the folder is on its path: a site's noise is then foreseeable.

Only tests can do so, since no setting selects seeded noise in a deployment. The ledger believes in
noise from the operating system, as for any hospital. The same place lies between a charge and its
first step, and so is where a site can be killed.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FATAL = "MEDFL_TEST_FATAL"
"""Environment variable: ``study/site/round`` in which the whole site is killed."""

SITE_ROUND = "medfl.federation.site_round"


def seeded_noise(task: Any, site: str) -> Any:
    """Takes the place of the site's choice of a noise source."""
    from medfl.privacy.noise import SecureNormal

    if os.environ.get(FATAL) == f"{task.study.id}/{site}/{task.round}":
        os.killpg(0, signal.SIGKILL)
    label = f"{task.study.seed}/{task.study.id}/{site}/{task.round}"
    return SecureNormal(hashlib.sha256(label.encode()).digest(), origin="operating-system")


class _Seeding(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if name != SITE_ROUND:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_replace(module: ModuleType) -> None:
            run(module)
            module._noise_source = seeded_noise  # type: ignore[attr-defined]

        spec.loader.exec_module = run_and_replace
        return spec  # type: ignore[no-any-return]


# Whoever imports this as a module wants the function only.
if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Seeding())
