"""From the folders of a site to a `Cohort`, or to a list of all that contradicts the layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from medfl.config.site import LabelScheme, Layout, Modality, SiteData
from medfl.data.cohort import Case, Cohort, Patient
from medfl.data.layout_rules import LAYOUTS, LayoutRule
from medfl.errors import DataError

_IMAGE_SUFFIXES = (".nii.gz", ".nii")
_NOT_PATIENTS = frozenset({"__MACOSX"})  # left behind by archives made on macOS


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why a folder cannot be used; local text that never leaves the site."""

    patient_id: str
    where: str
    rule: str
    value: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.rule}, found {self.value}. {self.fix}"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a root holds.

    Attributes:
        patients: All patients, in ascending order of their id; a case with a problem has only the
            files that were found.
        problems: Everything that contradicts the layout.
    """

    patients: tuple[Patient, ...]
    problems: tuple[Problem, ...]


def read_cohort(data: SiteData) -> Cohort:
    """Find all patients of a site.

    Args:
        data: Where the images are and how they are written.

    Returns:
        The patients in ascending order of their id, each with all of their cases.

    Raises:
        DataError: If anything under the root contradicts the layout; the text names the folder, the
            rule, what was found, and what to do.
    """
    survey = survey_cohort(data)
    if survey.problems:
        others = len(survey.problems) - 1
        more = f" ({others} more; `medfl check` lists all.)" if others else ""
        raise DataError(f"{survey.problems[0]}{more}")
    return Cohort(patients=survey.patients, label_scheme=data.label_scheme)


def read_case(
    folder: Path, *, layout: Layout, modalities: Sequence[Modality], label_scheme: LabelScheme
) -> Case:
    """Find the files of one case folder; the mask may be missing.

    Args:
        folder: The case folder; its name may be anything that its files' names repeat.
        layout: How the files are called.
        modalities: The images that are needed.
        label_scheme: What the mask's values mean, where there is a mask.

    Returns:
        The case.

    Raises:
        DataError: If the folder or an image is missing or doubled.
    """
    problems = _unfit_settings(layout, modalities, label_scheme)
    if not folder.is_dir():
        problems.append(_missing_folder(folder))
    if problems:
        raise DataError(str(problems[0]))
    case, problems = _find_case(folder, layout=layout, modalities=modalities, mask_required=False)
    if problems:
        raise DataError(str(problems[0]))
    return case


def survey_cohort(data: SiteData) -> Survey:
    """Find all patients of a site and all problems, without raising."""
    problems = _unfit_settings(data.layout, data.modalities, data.label_scheme)
    if problems:
        return Survey(patients=(), problems=tuple(problems))
    try:
        folders, problems = _case_folders(data.root, LAYOUTS[data.layout])
    except OSError as error:
        return Survey(patients=(), problems=(_unreadable("", data.root, error),))
    cases: dict[str, list[Case]] = {}
    seen: dict[str, Path] = {}
    for patient_id, folder in folders:
        if folder.name in seen:
            problems.append(_doubled_case(patient_id, folder, seen[folder.name]))
            continue
        seen[folder.name] = folder
        case, found = _find_case(
            folder, layout=data.layout, modalities=data.modalities, mask_required=True
        )
        problems.extend(found)
        cases.setdefault(patient_id, []).append(case)
    if not folders and not problems:
        problems.append(_no_patients(data))
    patients = tuple(
        Patient(patient_id=patient_id, cases=tuple(cases[patient_id]))
        for patient_id in sorted(cases)
    )
    return Survey(patients=patients, problems=tuple(problems))


def _case_folders(root: Path, rule: LayoutRule) -> tuple[list[tuple[str, Path]], list[Problem]]:
    """All (patient id, case folder) under the root, sorted by folder name."""
    if not root.is_dir():
        return [], [_missing_folder(root)]
    problems: list[Problem] = []
    parents = [root]
    if rule.groups:
        parents = [root / group for group in rule.groups if (root / group).is_dir()]
        strangers = [folder for folder in _folders(root) if folder.name not in rule.groups]
        problems += [_unknown_folder(folder, f"one of {list(rule.groups)}") for folder in strangers]
    found: list[tuple[str, Path]] = []
    for folder in sorted((f for parent in parents for f in _folders(parent)), key=_by_name):
        match = re.fullmatch(rule.case_folder, folder.name)
        if match:
            found.append((match["patient"], folder))
        else:
            problems.append(_unknown_folder(folder, f"a name that matches {rule.case_folder}"))
    return found, problems


def _by_name(folder: Path) -> tuple[str, str]:
    return folder.name, str(folder)


def _folders(parent: Path) -> list[Path]:
    return [
        entry
        for entry in parent.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _NOT_PATIENTS
    ]


def _find_case(
    folder: Path, *, layout: Layout, modalities: Sequence[Modality], mask_required: bool
) -> tuple[Case, list[Problem]]:
    rule = LAYOUTS[layout]
    match = re.fullmatch(rule.case_folder, folder.name)
    patient_id = match["patient"] if match else folder.name
    try:
        stems = _image_stems(folder)
    except OSError as error:
        return (
            Case(case_id=folder.name, images=MappingProxyType({}), mask=None),
            [_unreadable(patient_id, folder, error)],
        )
    problems: list[Problem] = []

    def single(pattern: str, what: str, *, required: bool) -> Path | None:
        paths = [path for stem, path in stems if re.fullmatch(pattern, stem, flags=re.IGNORECASE)]
        if len(paths) > 1 or (required and not paths):
            problems.append(_wrong_count(patient_id, folder, what, paths))
        return paths[0] if len(paths) == 1 else None

    images: dict[Modality, Path] = {}
    for modality in modalities:
        ending = rule.modalities[modality]
        path = single(
            re.escape(f"{folder.name}_{ending}"),
            f"one {modality} image (*_{ending})",
            required=True,
        )
        if path is not None:
            images[modality] = path
    mask_pattern = re.escape(f"{folder.name}_{rule.mask}")
    if rule.odd_mask:
        mask_pattern += f"|{rule.odd_mask}"
    mask = single(mask_pattern, f"one mask (*_{rule.mask})", required=mask_required)
    return Case(case_id=folder.name, images=MappingProxyType(images), mask=mask), problems


def _image_stems(folder: Path) -> list[tuple[str, Path]]:
    """(name without suffix, path) of every image file; hidden ``._`` files are no images."""
    stems = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        for suffix in _IMAGE_SUFFIXES:
            if path.name.lower().endswith(suffix):
                stems.append((path.name[: -len(suffix)], path))
                break
    return stems


def _unfit_settings(
    layout: Layout, modalities: Sequence[Modality], label_scheme: LabelScheme
) -> list[Problem]:
    rule = LAYOUTS[layout]
    problems = []
    unknown = [modality for modality in modalities if modality not in rule.modalities]
    if unknown:
        problems.append(
            Problem(
                patient_id="",
                where=f"layout {layout!r}",
                rule=f"modalities out of {list(rule.modalities)}",
                value=str(unknown),
                fix="Correct data.modalities in the site's file.",
            )
        )
    if label_scheme not in rule.label_schemes:
        problems.append(
            Problem(
                patient_id="",
                where=f"layout {layout!r}",
                rule=f"label_scheme out of {list(rule.label_schemes)}",
                value=repr(label_scheme),
                fix="Correct data.label_scheme in the site's file.",
            )
        )
    return problems


def _missing_folder(folder: Path) -> Problem:
    return Problem(
        patient_id="",
        where=str(folder),
        rule="a folder",
        value="a file" if folder.exists() else "nothing",
        fix="Correct the path, or mount the disk that holds it.",
    )


def _unreadable(patient_id: str, folder: Path, error: OSError) -> Problem:
    return Problem(
        patient_id=patient_id,
        where=str(folder),
        rule="a readable folder",
        value=str(error.strerror),
        fix="Let medfl's user read the folder.",
    )


def _no_patients(data: SiteData) -> Problem:
    rule = LAYOUTS[data.layout]
    below = f" in {' or '.join(rule.groups)}" if rule.groups else ""
    return Problem(
        patient_id="",
        where=str(data.root),
        rule=f"case folders that match {rule.case_folder}{below}",
        value="none",
        fix="Point data.root at the folder that holds the case folders, or correct data.layout.",
    )


def _unknown_folder(folder: Path, rule: str) -> Problem:
    return Problem(
        patient_id="",
        where=str(folder),
        rule=rule,
        value=repr(folder.name),
        fix="Move the folder elsewhere, or correct data.layout.",
    )


def _doubled_case(patient_id: str, folder: Path, first: Path) -> Problem:
    return Problem(
        patient_id=patient_id,
        where=str(folder),
        rule="each case in one folder",
        value=f"also {first}",
        fix="Remove one of the two.",
    )


def _wrong_count(patient_id: str, folder: Path, what: str, paths: list[Path]) -> Problem:
    names = ", ".join(path.name for path in paths)
    return Problem(
        patient_id=patient_id,
        where=str(folder),
        rule=what,
        value=names or "none",
        fix="Keep one of the files." if paths else "Add the file, or remove the case folder.",
    )
