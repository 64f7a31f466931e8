"""What software began a run, and whether the one at hand may go on with it.

A run that is resumed has to be computed, sent and counted as it was begun. Within a minor version
nothing of that changes; across one, a new run is the way. Between server and sites the same is
enforced elsewhere: Flower refuses peers of another minor version, and sites the app of another
medfl.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import ConfigError
from medfl.version import __version__

FILE = "versions.json"
"""In the run folder."""

_LIBRARIES = ("flwr", "dp-accounting", "opacus")  # messages, the count of epsilon, the step


def write_versions(out: Path) -> None:
    """Write down what begins a run.

    Args:
        out: The run folder.
    """
    write_atomically(out / FILE, (json.dumps(_versions(), indent=2) + "\n").encode())


def require_same_versions(out: Path) -> None:
    """Refuse to go on with a run that another minor version began.

    Args:
        out: The run folder.

    Raises:
        ConfigError: If it did, or if nothing is known of what began the run.
    """
    path = out / FILE
    try:
        begun = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        raise ConfigError(
            f"{path}: expected the versions that the run was begun with, found none; begin a new "
            "run."
        ) from None
    for name, here in _versions().items():
        then = str(begun.get(name, "nothing"))
        if _minor(then) != _minor(here):
            raise ConfigError(
                f"{out}: expected {name} {_minor(then)}, with which this run was begun, found "
                f"{here}; install {name} {then} to continue, or begin a new run."
            )


def _versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"medfl": __version__, **installed}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
