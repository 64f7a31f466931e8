"""Which model file a user means by a file, a run, or a hospital's folder of a run."""

from __future__ import annotations

from pathlib import Path

from medfl.errors import ModelError


def model_meant(path: Path) -> Path:
    """The model file behind a path.

    Args:
        path: A model file, the folder of a finished run, or a hospital's own folder of one
            (`STATE/models/RUN`), for the federated model in it.

    Raises:
        ModelError: If it is a folder without such a model.
    """
    from medfl.runs.files import FINAL_MODEL, RUN
    from medfl.site.run_models import RunModels

    if not path.is_dir():
        return path
    for file in (path / FINAL_MODEL, RunModels(folder=path).federated):
        if file.is_file():
            return file
    if (path / RUN.name).is_file():
        raise ModelError(
            f"{path}: expected a finished run, found one without a final model. Go on with it by "
            f"--resume, or name one of the files in {path / FINAL_MODEL.parent}."
        )
    raise ModelError(
        f"{path}: expected a model file or the folder of a run, found a folder without "
        f"{FINAL_MODEL}."
    )
