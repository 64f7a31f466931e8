"""The models of a hospital's runs: a folder for each run, in the state folder, for its owner only.

The federated model is the last one of the run. The start is the first one, which no patient had
trained: the server sends it to everybody in round 1, and with it the hospital can see what it could
have made alone. The third is the hospital's own, which never leaves (`medfl.site.own_model`).

Nothing of torch is imported here, since the process that runs for months looks for these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import FederationError
from medfl.site.run_folders import folder_of_run

MODELS = "models"
"""Folder in the state folder."""


@dataclass(frozen=True, kw_only=True)
class RunModels:
    """Where the models of one run lie, which may be missing.

    Attributes:
        folder: Named like the run.
    """

    folder: Path

    @property
    def run(self) -> str:
        """The run."""
        return self.folder.name

    @property
    def start(self) -> Path:
        """What the run began with."""
        return self.folder / "start.safetensors"

    @property
    def federated(self) -> Path:
        """The final model."""
        return self.folder / "federated.safetensors"

    @property
    def own(self) -> Path:
        """The hospital's own model."""
        return self.folder / "own.safetensors"


def models_of(state: Path, *, run: str) -> RunModels:
    """Where the models of a run lie.

    Args:
        state: The site's state folder.
        run: Identifier of the run.

    Raises:
        MessageError: If no file can be named like the run; medfl's own runs are named by letters,
            digits, '-' and '_'.
    """
    return RunModels(folder=folder_of_run(state / MODELS, run=run))


def finished_runs(state: Path) -> list[RunModels]:
    """The runs whose final model is here, in the order of their names.

    Args:
        state: The site's state folder.
    """
    folders = sorted((state / MODELS).glob("*/"))
    found = (RunModels(folder=folder) for folder in folders)
    return [models for models in found if models.federated.exists()]


def write_model(path: Path, content: bytes) -> None:
    """Write one of a run's models, for its owner only.

    Raises:
        FederationError: If it cannot be written.
    """
    try:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, content, mode=0o600)
    except OSError as error:
        raise FederationError(
            f"{path}: the model could not be stored: {error.strerror}.", code="models"
        ) from None
