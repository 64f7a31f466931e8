"""Masks of many cases: named, placed and written as the images' own source would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfl.config.site import SiteData
from medfl.data.cohort import Case
from medfl.data.layouts.survey import names_of_masks, read_case, survey_cohort
from medfl.data.nifti.headers import FileFaults
from medfl.errors import ConfigError, DataError
from medfl.prediction.mask_file import save_like
from medfl.prediction.predictor import Predictor, Segmentation

_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A case that could not be segmented."""

    case_id: str
    reason: str


def predict_case(
    predictor: Predictor,
    folder: str | Path,
    *,
    data: SiteData,
    out: str | Path,
    probabilities: bool = False,
) -> None:
    """Segment the case in one folder.

    Args:
        predictor: The model.
        folder: The case folder.
        data: How its files are called; its modalities are those that may be there.
        out: Where the mask goes; must not exist.
        probabilities: Also write them, as ``<out>_probabilities.nii.gz``.

    Raises:
        ConfigError: If `out` cannot be used.
        DataError: If the case cannot be read.
    """
    folder, out = Path(folder), Path(out)
    if not out.name.endswith(_SUFFIXES):
        raise ConfigError(f"{out}: expected a name ending in .nii or .nii.gz.")
    wanted = data.model_copy(update={"modalities": predictor.modalities(data.modalities)})
    case = read_case(folder, data=wanted)
    _require_new(out, probabilities=probabilities)
    found = predictor.segment(case, label_scheme=data.mask_scheme)
    _write(found, case, out=out, data=data, probabilities=probabilities)


def predict_cohort(
    predictor: Predictor,
    data: SiteData,
    *,
    out: Path,
    probabilities: bool = False,
    on_case: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Failed]:
    """Segment every case below a root; a case that fails does not stop the others.

    Args:
        predictor: The model.
        data: Where the images are; masks are not needed. A root that is itself the folder of one
            case counts as that case.
        out: Folder of the masks, each under the path that the layout gives it; a mask that is there
            already is kept, so that an interrupted run goes on.
        probabilities: Also write them, beside the mask.
        on_case: Called with (cases done, cases in all).

    Returns:
        The cases that failed, with the reason.

    Raises:
        DataError: If there are no cases, two would share a path, or the model needs modalities that
            the site lacks.
    """
    data = data.model_copy(update={"modalities": predictor.modalities(data.modalities)})
    cases, places = _cases(data)
    failed = []
    for done, case in enumerate(cases, start=1):
        try:
            path = out / places[case.case_id]
            if not path.exists():
                found = predictor.segment(case, label_scheme=data.mask_scheme)
                _write(found, case, out=path, data=data, probabilities=probabilities)
        except (DataError, FileFaults, OSError) as error:
            failed.append(Failed(case_id=case.case_id, reason=str(error)))
        on_case(done, len(cases))
    return failed


def _cases(data: SiteData) -> tuple[list[Case], Mapping[str, Path]]:
    """All cases, and where their masks go."""
    survey = survey_cohort(data, masks_required=False)
    if cases := [case for patient in survey.patients for case in patient.cases]:
        return cases, names_of_masks(survey.patients, data=data)
    root, *others = data.roots
    if others or not _holds_images(root):
        raise DataError(str(survey.problems[0]))
    case = read_case(root.resolve(), data=data)  # of "." too, whose name is the case's
    return [case], {case.case_id: case.mask_path}


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(path.name.endswith(_SUFFIXES) for path in folder.iterdir())


def _write(
    found: Segmentation, case: Case, *, out: Path, data: SiteData, probabilities: bool
) -> None:
    source = next(iter(case.images.values()))
    if probabilities:
        volumes = np.moveaxis(found.probabilities_RXYZ.numpy(), 0, -1)
        save_like(volumes, _beside(out), source=source)
    # Last, since a mask that is there counts as done.
    save_like(found.labels(data.mask_scheme), out, source=source)


def _require_new(out: Path, *, probabilities: bool) -> None:
    for path in (out, *([_beside(out)] if probabilities else [])):
        if path.exists():
            raise ConfigError(f"{path}: expected a new file, found one that exists.")


def _beside(out: Path) -> Path:
    length = next(len(suffix) for suffix in _SUFFIXES if out.name.endswith(suffix))
    return out.with_name(f"{out.name[:-length]}_probabilities.nii.gz")
