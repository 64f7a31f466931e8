"""From the folders of a site to a `Cohort`, or to a list of all that contradicts the layout."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfl.config.site import SiteData
from medfl.data.cohort import Case, Cohort, Patient
from medfl.data.layouts.dataset_json import (
    DATASET,
    channel_contradictions,
    label_contradictions,
    read_description,
)
from medfl.data.layouts.drafts import finished_case
from medfl.data.layouts.other_formats import not_nifti
from medfl.data.layouts.people import person_of
from medfl.data.layouts.problems import (
    Problem,
    divided_patient,
    missing_folder,
    names_alike,
    nested_roots,
    no_patients,
    unreadable,
)
from medfl.data.layouts.rule import LayoutRule, stand_ins
from medfl.data.layouts.rules import rule_of
from medfl.data.layouts.walk import Draft, Walk, image_stems
from medfl.errors import DataError
from medfl.text_files import read_lines


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the roots of a site hold.

    Attributes:
        patients: All patients, in ascending order of their id; a case with a problem has only the
            files that were found.
        problems: Everything that contradicts the layout.
        left_out: Why cases are not among the patients, where the site leaves incomplete ones out.
    """

    patients: tuple[Patient, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[Problem, ...] = ()


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
        masks_required: Whether a case without a mask is incomplete.
    """
    rule = rule_of(data)
    problems = _unfit_settings(data, rule) or list(_unfit_roots(data))
    if problems:
        return Survey(patients=(), problems=tuple(problems))
    walk = Walk(rule, data.modalities)
    for root in data.roots:
        walk.look(root)
    problems = walk.problems
    listed, others = _included(data.include, walk)
    problems += others
    cohort = _Gathered(data, rule)
    for case_id in listed:
        cohort.add(case_id, walk.drafts[case_id], masks_required=masks_required)
    problems += cohort.problems
    problems += _stray_masks(walk)
    for root in data.roots:
        problems += _contradictions(root, data, rule)
        problems += _both_sets(root, data, rule, cohort.patient_ids)
    if not cohort.has_images:
        if other := next(filter(None, map(not_nifti, data.roots)), None):
            problems.insert(0, other)
        elif not problems:
            problems += cohort.left_out[:1] or [no_patients(data, rule)]
    return Survey(
        patients=cohort.patients, problems=tuple(problems), left_out=tuple(cohort.left_out)
    )


class _Gathered:
    """The cases of a site, each under the person that its name refers to.

    Attributes:
        problems: What is wrong with them.
        left_out: Why incomplete cases are not among them.
    """

    def __init__(self, data: SiteData, rule: LayoutRule) -> None:
        self._data = data
        self._rule = rule
        self._cases: dict[str, list[Case]] = defaultdict(list)
        self._told: dict[str, set[str]] = defaultdict(set)
        self._found: list[Problem] = []
        self.left_out: list[Problem] = []

    def add(self, case_id: str, draft: Draft, *, masks_required: bool) -> None:
        """Finish a case, and put it where it belongs."""
        by_layout = person_of(draft.known["patient"])
        patient_id = _patient_id(case_id, by_layout, self._data.patient)
        self._told[by_layout].add(patient_id)
        case, wrong, lacking = finished_case(
            case_id, draft, patient_id, self._data, self._rule, masks_required=masks_required
        )
        self._found += wrong
        # A case to be segmented needs no mask, and a model says itself which images it needs.
        if lacking and not wrong and masks_required and self._data.incomplete == "leave-out":
            self.left_out += lacking
            return
        self._found += lacking
        self._cases[patient_id].append(case)

    @property
    def patients(self) -> tuple[Patient, ...]:
        """In ascending order of their id."""
        return tuple(
            Patient(patient_id=patient_id, cases=tuple(self._cases[patient_id]))
            for patient_id in self.patient_ids
        )

    @property
    def patient_ids(self) -> list[str]:
        """In ascending order."""
        return sorted(self._cases)

    @property
    def has_images(self) -> bool:
        """Whether any case has one."""
        return any(case.images for cases in self._cases.values() for case in cases)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the cases, and with who their patients are."""
        where = self._data.roots[0]
        divided = [
            divided_patient(person, sorted(parts), where)
            for person, parts in sorted(self._told.items())
            if len(parts) > 1
        ]
        alike: dict[str, list[str]] = defaultdict(list)
        for patient_id in self.patient_ids:
            alike[patient_id.casefold()].append(patient_id)
        doubled = [names_alike(names, where) for names in alike.values() if len(names) > 1]
        return [*self._found, *divided, *doubled]


def names_of_masks(patients: Sequence[Patient], *, data: SiteData) -> dict[str, Path]:
    """Case id -> where a layout would have the case's mask, as a path below some root.

    Args:
        patients: All patients of a cohort.
        data: Their layout.

    Raises:
        DataError: If two cases would have one path.
    """
    places: dict[str, Path] = {}
    owners: dict[str, str] = {}
    for patient in patients:
        for case in patient.cases:
            places[case.case_id] = case.mask_path
            # Where disks do not tell capital letters apart, one file would replace the other.
            owner = owners.setdefault(str(case.mask_path).casefold(), case.case_id)
            if owner != case.case_id:
                raise DataError(
                    f"layout {data.layout!r}: expected a path of its own for the mask of every "
                    f"case, found {case.mask_path} for both {owner} and {case.case_id}. Put "
                    "{case}, or {patient} and {session}, into the mask's path (data.custom.mask)."
                )
    return places


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
    known = _known_of_folder(folder, rule)
    if known is None:
        raise DataError(
            f"{folder}: expected a layout with one folder a case, found {data.layout!r}. Give the "
            "root of the whole cohort instead."
        )
    walk = Walk(rule, data.modalities)
    walk.look_into_case(folder, known)
    (draft,) = walk.drafts.values()
    case, wrong, lacking = finished_case(
        folder.name, draft, folder.name, data, rule, masks_required=False
    )
    problems = walk.problems + wrong + lacking
    if problems:
        raise DataError(str(problems[0]))
    return case


def _known_of_folder(folder: Path, rule: LayoutRule) -> dict[str, str] | None:
    """What the name of a case folder, and of those above it, say; None without such folders."""
    above = {tuple(path.split("/")[:-1]) for paths in rule.images.values() for path in paths}
    if {names[-1:] for names in above} == {("{case}",)}:
        return {"case": folder.name, "patient": folder.name}
    parts = folder.resolve().parts
    for names in above:
        known: dict[str, str] = {}
        for name, part in zip(reversed(names), reversed(parts), strict=False):
            match = rule.pattern(name, known=known, ignore_case=True).fullmatch(part)
            if match is None:
                break
            known |= match.groupdict()
        else:
            if stand_ins("/".join(names)) and "patient" in known:
                return known
    return None


def _patient_id(case_id: str, by_layout: str, pattern: str) -> str:
    match = re.fullmatch(pattern, case_id) if pattern else None
    return match["patient"] if match else by_layout


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


def _unfit_roots(data: SiteData) -> Iterator[Problem]:
    """Roots that are no folders, and those of which one holds the other."""
    for root in data.roots:
        try:
            if not root.is_dir():
                yield missing_folder(root)
        except OSError as error:  # a folder above it may not be entered
            yield unreadable("", root, error)
    real = [root.resolve() for root in data.roots]
    for place, root in enumerate(real):
        for other in real[place + 1 :]:
            if root.is_relative_to(other) or other.is_relative_to(root):
                yield nested_roots(*sorted((root, other), key=lambda path: len(path.parts)))


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


def _contradictions(root: Path, data: SiteData, rule: LayoutRule) -> Iterator[Problem]:
    """What a `dataset.json` says against the layout or the label scheme."""
    if not rule.numbers:
        return
    try:
        content = read_description(root)
    except ValueError as error:
        yield Problem(
            patient_id="",
            where=str(root / DATASET),
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
            where=str(root / DATASET),
            rule=expected,
            value=value,
            fix="Describe the files with layout = 'custom', or correct data.label_scheme; with "
            "'custom', [data.labels] says what each value is.",
        )


def _both_sets(
    root: Path, data: SiteData, rule: LayoutRule, patients: Iterable[str]
) -> Iterator[Problem]:
    """Patients of the test set who would train as well."""
    folder = root / rule.held_apart
    try:
        files = sorted(folder.iterdir()) if rule.held_apart and folder.is_dir() else []
        stems = {re.sub(r"_\d{4}$", "", stem) for stem, _ in image_stems(files)}
    except OSError as error:
        yield unreadable("", folder, error)
        return
    tested = {
        _patient_id(stem, person_of(match["patient"]), data.patient)
        for stem in stems
        if (match := re.fullmatch(rule.case, stem))
    }
    for patient_id in sorted(tested.intersection(patients)):
        yield Problem(
            patient_id=patient_id,
            where=str(folder),
            rule="each patient either to train or to test",
            value=f"{patient_id} in both",
            fix="Remove the patient from one of the two.",
            names=True,
        )
