"""From the folders of a site to a `Cohort`, or to a list of all that contradicts the layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from medfl.config.site import Modality, SiteData
from medfl.data.cohort import Case, Cohort, Patient
from medfl.data.layouts.dataset_json import (
    DATASET,
    channel_contradictions,
    label_contradictions,
    read_description,
)
from medfl.data.layouts.other_formats import not_nifti
from medfl.data.layouts.problems import (
    Problem,
    doubled_case,
    missing_folder,
    no_patient_in,
    no_patients,
    unreadable,
    wrong_count,
)
from medfl.data.layouts.rules import LayoutRule, rule_of
from medfl.data.layouts.walk import Draft, Walk, image_stems
from medfl.errors import DataError
from medfl.text_files import read_lines


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


def survey_cohort(data: SiteData, *, masks_required: bool = True) -> Survey:
    """Find all patients of a site and all problems, without raising.

    Args:
        data: Where the images are and how they are written.
        masks_required: Whether a case without a mask is a problem.
    """
    rule = rule_of(data)
    problems = _unfit_settings(data, rule)
    if problems:
        return Survey(patients=(), problems=tuple(problems))
    try:
        if not data.root.is_dir():
            return Survey(patients=(), problems=(missing_folder(data.root),))
    except OSError as error:  # a folder above it may not be entered
        return Survey(patients=(), problems=(unreadable("", data.root, error),))
    walk = Walk(rule, data.modalities)
    walk.look(data.root)
    chosen, others = _included(data.include, walk)
    walk.problems.extend(others)
    cases: dict[str, list[Case]] = {}
    for case_id in chosen:
        draft = walk.drafts[case_id]
        patient_id = _patient_id(case_id, draft, data.patient)
        case, found = _case(case_id, draft, patient_id, data, rule, masks_required=masks_required)
        walk.problems.extend(found)
        cases.setdefault(patient_id, []).append(case)
    walk.problems.extend(_stray_masks(walk))
    walk.problems.extend(_contradictions(data, rule))
    walk.problems.extend(_both_sets(data, rule, cases))
    if not any(case.images for found in cases.values() for case in found):
        if other := not_nifti(data.root):
            walk.problems.insert(0, other)
        elif not cases and not walk.problems:
            walk.problems.append(no_patients(data, rule))
    patients = tuple(
        Patient(patient_id=patient_id, cases=tuple(cases[patient_id]))
        for patient_id in sorted(cases)
    )
    return Survey(patients=patients, problems=tuple(walk.problems))


def names_of_masks(patients: Sequence[Patient], *, data: SiteData) -> dict[str, Path]:
    """Case id -> where a layout would have the case's mask, as a path below some root.

    Args:
        patients: All patients of a cohort.
        data: The layout, and the root of the images.

    Raises:
        DataError: If two cases would have one path.
    """
    places: dict[str, Path] = {}
    owners: dict[str, str] = {}
    for patient in patients:
        for case in patient.cases:
            path = _name_of_mask(case, patient_id=patient.patient_id, data=data)
            places[case.case_id] = path
            # Where disks do not tell capital letters apart, one file would replace the other.
            owner = owners.setdefault(str(path).casefold(), case.case_id)
            if owner != case.case_id:
                raise DataError(
                    f"layout {data.layout!r}: expected a path of its own for the mask of every "
                    f"case, found {path} for both {owner} and {case.case_id}. Put {{case}} into "
                    "the mask's path (data.custom.mask)."
                )
    return places


def _name_of_mask(case: Case, *, patient_id: str, data: SiteData) -> Path:
    """Where a layout would have the mask of a case, as a path below some root.

    Args:
        case: The case.
        patient_id: Whose it is.
        data: The layout, and the root of the images.

    Returns:
        The path, with the suffix ``.nii.gz``; wherever the layout leaves a choice, medfl's own.
    """
    rule = rule_of(data)
    session = case.case_id.removeprefix(patient_id).removeprefix("_")
    known = {"case": case.case_id, "patient": patient_id, "session": session}
    names = [path.split("/") for path in rule.masks]
    folder = next(iter(case.images.values())).parent
    *above, last = next(
        name
        for name in names
        if ("{session}" in "".join(name)) == bool(session) or "{case}" in "".join(name)
    )
    if any(part == "{case}" for part in names[0][:-1]):
        place = folder.relative_to(data.root)  # a folder of the case's own
    elif "*" in rule.masks[0]:
        place = Path("derivatives") / "medfl" / folder.relative_to(data.root)
        last = last.replace("*", "desc-medfl_")
    elif "*" in "".join(above):
        place = folder.relative_to(data.root)  # nobody can tell what stood there
    else:
        place = Path(*(_filled(part, known) for part in above))
    return place / f"{_filled(last, known)}.nii.gz"


def _filled(name: str, known: Mapping[str, str]) -> str:
    for stand_in, value in known.items():
        name = name.replace(f"{{{stand_in}}}", value)
    return name.replace("*", "medfl")


def read_case(folder: Path, *, data: SiteData) -> Case:
    """Find the files of one case folder; the mask may be missing.

    Args:
        folder: The case folder; its name may be anything that its files' names repeat.
        data: How the files are called, and which modalities are needed; its root does not matter.

    Returns:
        The case.

    Raises:
        DataError: If the layout has no case folders, or the folder or an image is missing or
            doubled.
    """
    rule = rule_of(data)
    problems = _unfit_settings(data, rule)
    if not problems and not folder.is_dir():
        problems.append(missing_folder(folder))
    if problems:
        raise DataError(str(problems[0]))
    endings = {path.split("/")[-2:][0] for paths in rule.images.values() for path in paths}
    if endings != {"{case}"}:
        raise DataError(
            f"{folder}: expected a layout with one folder a case, found {data.layout!r}. Give the "
            "root of the whole cohort instead."
        )
    walk = Walk(rule, data.modalities)
    walk.look_into_case(folder)
    draft = walk.drafts[folder.name]
    case, found = _case(folder.name, draft, folder.name, data, rule, masks_required=False)
    problems = walk.problems + found
    if problems:
        raise DataError(str(problems[0]))
    return case


def _patient_id(case_id: str, draft: Draft, pattern: str) -> str:
    match = re.fullmatch(pattern, case_id) if pattern else None
    return match["patient"] if match else draft.known["patient"]


def _case(
    case_id: str,
    draft: Draft,
    patient_id: str,
    data: SiteData,
    rule: LayoutRule,
    *,
    masks_required: bool,
) -> tuple[Case, list[Problem]]:
    problems: list[Problem] = []
    if len(draft.folders) > 1:
        problems.append(doubled_case(patient_id, *draft.folders[:2]))
    where = draft.folders[0] if draft.folders else data.root
    if data.patient and not re.fullmatch(data.patient, case_id):
        problems.append(no_patient_in(case_id, where, data.patient))

    def single(paths: Sequence[Path], what: str, *, required: bool) -> Path | None:
        if judged and (len(paths) > 1 or (required and not paths)):
            problems.append(wrong_count(patient_id, where, what, paths))
        return paths[0] if len(paths) == 1 else None

    # Of a doubled or unreadable case, nothing more is worth a line.
    judged = len(draft.folders) == 1
    images: dict[Modality, Path] = {}
    for modality in data.modalities:
        what = f"one {modality} image ({_shown(rule.images[modality])})"
        path = single(draft.images.get(modality, []), what, required=True)
        if path is not None:
            images[modality] = path
    mask = single(draft.masks, f"one mask ({_shown(rule.masks)})", required=masks_required)
    channels = {name: rule.channels[name] for name in images if name in rule.channels}
    case = Case(
        case_id=case_id,
        images=MappingProxyType(images),
        mask=mask,
        channels=MappingProxyType(channels),
        volumes=max(1, len(rule.channels)),
    )
    return case, problems


def _shown(paths: Sequence[str]) -> str:
    """The ways that a file may be called, for a message."""
    names = [re.sub(r"(\{\w+\})(_\{\w+\})?", "*", path.split("/")[-1]) for path in paths]
    return ", ".join(dict.fromkeys(names))


def _unfit_settings(data: SiteData, rule: LayoutRule) -> list[Problem]:
    problems = []
    unknown = [modality for modality in data.modalities if modality not in rule.modalities]
    if unknown:
        problems.append(
            Problem(
                patient_id="",
                where=f"layout {data.layout!r}",
                rule=f"modalities out of {list(rule.modalities)}",
                value=str(unknown),
                fix="Correct data.modalities in the site's file.",
            )
        )
    return problems


def _included(path: Path | None, walk: Walk) -> tuple[list[str], list[Problem]]:
    """The cases of the site, and those that are listed and not there."""
    if path is None:
        return sorted(walk.drafts), []
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        return [], [_unreadable_list(path, error)]
    listed = sorted(set(lines))
    problems = [_not_there(case_id, path) for case_id in listed if case_id not in walk.drafts]
    return [case_id for case_id in listed if case_id in walk.drafts], problems


def _stray_masks(walk: Walk) -> Iterator[Problem]:
    for case_id, paths in sorted(walk.strays.items()):
        yield Problem(
            patient_id=case_id,
            where=str(paths[0]),
            rule="images beside every mask",
            value="none",
            fix="Add the case's images, or move the mask away.",
        )


def _unreadable_list(path: Path, error: Exception) -> Problem:
    return Problem(
        patient_id="",
        where=str(path),
        rule="a text file with the name of a case in each line (data.include)",
        value=str(error),
        fix="Correct the path, or the file.",
        names=True,
    )


def _not_there(case_id: str, path: Path) -> Problem:
    return Problem(
        patient_id=case_id,
        where=str(path),
        rule="only cases that are below data.root",
        value=repr(case_id),
        fix="Add the case, or take it off the list.",
        names=True,
    )


def _contradictions(data: SiteData, rule: LayoutRule) -> Iterator[Problem]:
    """What a `dataset.json` says against the layout or the label scheme."""
    if not rule.numbers:
        return
    try:
        content = read_description(data.root)
    except ValueError as error:
        yield Problem(
            patient_id="",
            where=str(data.root / DATASET),
            rule="a readable JSON object of at most 16 MiB, if there is a file",
            value=str(error),
            fix="Copy the file again: it tells which number is which modality.",
        )
        return
    found = [
        *channel_contradictions(content, rule.numbers),
        *label_contradictions(content, data.mask_scheme),
    ]
    for expected, value in found:
        yield Problem(
            patient_id="",
            where=str(data.root / DATASET),
            rule=expected,
            value=value,
            fix="Describe the files with layout = 'custom', or correct data.label_scheme; with "
            "'custom', [data.labels] says what each value is.",
        )


def _both_sets(data: SiteData, rule: LayoutRule, patients: Iterable[str]) -> Iterator[Problem]:
    """Patients of the test set who would train as well."""
    folder = data.root / rule.held_apart
    try:
        files = sorted(folder.iterdir()) if rule.held_apart and folder.is_dir() else []
        stems = {re.sub(r"_\d{4}$", "", stem) for stem, _ in image_stems(files)}
    except OSError as error:
        yield unreadable("", folder, error)
        return
    pattern = data.patient or rule.case
    tested = {match["patient"] for stem in stems if (match := re.fullmatch(pattern, stem))}
    for patient_id in sorted(tested.intersection(patients)):
        yield Problem(
            patient_id=patient_id,
            where=str(folder),
            rule="each patient either to train or to test",
            value=f"{patient_id} in both",
            fix="Remove the patient from one of the two.",
            names=True,
        )
