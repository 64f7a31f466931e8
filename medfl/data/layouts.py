"""From the folders of a site to a `Cohort`, or to a list of all that contradicts the layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from medfl.config.site import Modality, SiteData
from medfl.data.cohort import Case, Cohort, Patient
from medfl.data.dataset_json import DATASET, channel_contradictions, label_contradictions
from medfl.data.layout_rules import LayoutRule, rule_of
from medfl.errors import DataError

_IMAGE_SUFFIXES = (".nii.gz", ".nii")
_NOT_PATIENTS = frozenset({"__MACOSX"})  # left behind by archives made on macOS


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why a folder cannot be used; local text that never leaves the site.

    Attributes:
        names: Whether `value` holds names of files, folders or people; `rule` and `fix` never do.
    """

    patient_id: str
    where: str
    rule: str
    value: str
    fix: str
    names: bool = False

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
    if not data.root.is_dir():
        return Survey(patients=(), problems=(_missing_folder(data.root),))
    walk = _Walk(rule, data.modalities)
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
    walk.problems.extend(_both_sets(data, rule, chosen))
    if not cases and not walk.problems:
        walk.problems.append(_no_patients(data, rule))
    patients = tuple(
        Patient(patient_id=patient_id, cases=tuple(cases[patient_id]))
        for patient_id in sorted(cases)
    )
    return Survey(patients=patients, problems=tuple(walk.problems))


def name_of_mask(case: Case, *, patient_id: str, data: SiteData) -> Path:
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
    *_, last = next(
        name
        for name in names
        if ("{session}" in "".join(name)) == bool(session) or "{case}" in "".join(name)
    )
    if any(part == "{case}" for part in names[0][:-1]):
        place = folder.relative_to(data.root)  # a folder of the case's own
    elif "*" in rule.masks[0]:
        place = Path("derivatives") / "medfl" / folder.relative_to(data.root)
        last = last.replace("*", "desc-medfl_")
    else:
        place = Path(*names[0][:-1])
    for name, value in known.items():
        last = last.replace(f"{{{name}}}", value)
    return place / f"{last}.nii.gz"


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
        problems.append(_missing_folder(folder))
    if problems:
        raise DataError(str(problems[0]))
    endings = {path.split("/")[-2:][0] for paths in rule.images.values() for path in paths}
    if endings != {"{case}"}:
        raise DataError(
            f"{folder}: expected a layout with one folder a case, found {data.layout!r}. Give the "
            "root of the whole cohort instead."
        )
    walk = _Walk(rule, data.modalities)
    walk.look_into_case(folder)
    draft = walk.drafts[folder.name]
    case, found = _case(folder.name, draft, folder.name, data, rule, masks_required=False)
    problems = walk.problems + found
    if problems:
        raise DataError(str(problems[0]))
    return case


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """What is left of a path below the folder that is looked at.

    Attributes:
        modality: Whose file it leads to; None for the mask.
        names: The rest of the path.
        known: What stand-ins were found to be so far.
    """

    modality: Modality | None
    names: tuple[str, ...]
    known: Mapping[str, str]


@dataclass(kw_only=True)
class _Draft:
    """The files of one case as they are found."""

    known: Mapping[str, str]
    folders: list[Path] = field(default_factory=list)
    images: dict[Modality, list[Path]] = field(default_factory=dict)
    masks: list[Path] = field(default_factory=list)


class _Walk:
    """One way through all folders below a root, along the paths of a rule.

    Attributes:
        drafts: The cases by name.
        strays: Masks whose case has no image folder, by the case's name.
        problems: What contradicts the rule on the way.
    """

    def __init__(self, rule: LayoutRule, modalities: Sequence[Modality]) -> None:
        self._rule = rule
        self._paths: list[tuple[Modality | None, str]] = [
            (modality, path) for modality in modalities for path in rule.images[modality]
        ]
        self._paths += [(None, path) for path in rule.masks]
        self.drafts: dict[str, _Draft] = {}
        self.strays: dict[str, list[Path]] = {}
        self.problems: list[Problem] = []
        self._places = 0

    def look(self, root: Path) -> None:
        """Find everything below a root."""
        self._look(
            root,
            [
                _Branch(modality=modality, names=tuple(path.split("/")), known={})
                for modality, path in self._paths
            ],
        )
        self._join_masks()

    def look_into_case(self, folder: Path) -> None:
        """Find the files of one case folder, whatever it is called."""
        known = {"case": folder.name, "patient": folder.name}
        # Where a case folder may lie at several places, its files are called the same.
        files = dict.fromkeys((modality, path.split("/")[-1]) for modality, path in self._paths)
        self._look(
            folder,
            [_Branch(modality=modality, names=(name,), known=known) for modality, name in files],
        )
        self._join_masks()

    def _join_masks(self) -> None:
        for case_id in [name for name in self.strays if name in self.drafts]:
            self.drafts[case_id].masks += self.strays.pop(case_id)

    def _look(self, folder: Path, branches: list[_Branch]) -> None:
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            patient = next((b.known["patient"] for b in branches if "patient" in b.known), "")
            self.problems.append(_unreadable(patient, folder, error))
            for branch in branches:
                self._begin(branch, folder, readable=False)
            return
        files = [branch for branch in branches if len(branch.names) == 1]
        for branch in files:
            self._begin(branch, folder)
        if files:
            self._match_files(entries, files)
        deeper = [branch for branch in branches if len(branch.names) > 1]
        if deeper:
            for entry in entries:
                if _may_hold_patients(entry):
                    self._enter(entry, deeper)

    def _begin(self, branch: _Branch, folder: Path, *, readable: bool = True) -> None:
        """Note a case that a folder's name tells of, even if the folder is empty."""
        if branch.modality is None:
            return
        unknown = set(re.findall(r"\{(\w+)\}", branch.names[-1])) - set(branch.known)
        if not unknown and _identity(branch.known):
            draft = self._draft(branch.known, folder)
            if not readable:
                # Said once; every missing image besides would be noise.
                draft.folders.clear()

    def _draft(self, known: Mapping[str, str], folder: Path) -> _Draft:
        draft = self.drafts.setdefault(_identity(known), _Draft(known=known))
        if folder not in draft.folders:
            draft.folders.append(folder)
            self._places += 1
        return draft

    def _match_files(self, entries: Sequence[Path], branches: Sequence[_Branch]) -> None:
        for stem, path in _image_stems(entries):
            found = [self._match_file(stem, path, branch) for branch in branches]
            # Where folders name the cases, further files in them are nobody's business.
            if not any(found) and not any(_identity(branch.known) for branch in branches):
                self.problems.append(_unknown_file(path, branches, self._rule))

    def _match_file(self, stem: str, path: Path, branch: _Branch) -> bool:
        pattern = self._rule.pattern(branch.names[0], known=branch.known, ignore_case=True)
        match = pattern.fullmatch(stem)
        if match is None:
            return False
        known = {**branch.known, **match.groupdict()}
        if branch.modality is None:
            self._add_mask(known, path)
            return True
        # Where files name the cases, the case is all that tells where a problem is.
        place = path.parent if _identity(branch.known) else path.parent / _identity(known)
        images = self._draft(known, place).images.setdefault(branch.modality, [])
        if path not in images:
            images.append(path)
        return True

    def _add_mask(self, known: Mapping[str, str], path: Path) -> None:
        masks = self.strays.setdefault(_identity(known), [])
        if path not in masks:  # several paths of a rule may lead to one file
            masks.append(path)

    def _enter(self, folder: Path, branches: Sequence[_Branch]) -> None:
        inside = []
        for branch in branches:
            pattern = self._rule.pattern(branch.names[0], known=branch.known, ignore_case=False)
            match = pattern.fullmatch(folder.name)
            if match is not None:
                known = {**branch.known, **match.groupdict()}
                inside.append(
                    _Branch(modality=branch.modality, names=branch.names[1:], known=known)
                )
        of_images = [branch for branch in branches if branch.modality is not None]
        if inside:
            before = self._places, len(self.problems)
            self._look(folder, inside)
            named = [branch for branch in inside if branch.modality is not None and branch.known]
            if named and before == (self._places, len(self.problems)):
                # A person's folder without a case is a problem, not nobody.
                self.problems.append(_empty_patient(named[0].known["patient"], folder))
        elif of_images and folder.name not in self._rule.ignored:
            self.problems.append(_unknown_folder(folder, of_images, self._rule))


def _identity(known: Mapping[str, str]) -> str:
    """Name of a case."""
    if "case" in known:
        return known["case"]
    return "_".join(known[name] for name in ("patient", "session") if name in known)


def _patient_id(case_id: str, draft: _Draft, pattern: str) -> str:
    match = re.fullmatch(pattern, case_id) if pattern else None
    return match["patient"] if match else draft.known["patient"]


def _may_hold_patients(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".") and entry.name not in _NOT_PATIENTS


def is_image(name: str) -> bool:
    """Whether a file of this name is an image; hidden ``._`` files are none."""
    return not name.startswith(".") and name.lower().endswith(_IMAGE_SUFFIXES)


def _image_stems(entries: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name without suffix, path) of every image file."""
    for path in entries:
        if is_image(path.name) and path.is_file():
            length = next(len(s) for s in _IMAGE_SUFFIXES if path.name.lower().endswith(s))
            yield path.name[:-length], path


def _case(
    case_id: str,
    draft: _Draft,
    patient_id: str,
    data: SiteData,
    rule: LayoutRule,
    *,
    masks_required: bool,
) -> tuple[Case, list[Problem]]:
    problems: list[Problem] = []
    if len(draft.folders) > 1:
        problems.append(_doubled_case(patient_id, *draft.folders[:2]))
    where = draft.folders[0] if draft.folders else data.root
    if data.patient and not re.fullmatch(data.patient, case_id):
        problems.append(_no_patient_in(case_id, where, data.patient))

    def single(paths: Sequence[Path], what: str, *, required: bool) -> Path | None:
        if judged and (len(paths) > 1 or (required and not paths)):
            problems.append(_wrong_count(patient_id, where, what, paths))
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
    if data.label_scheme not in rule.label_schemes:
        problems.append(
            Problem(
                patient_id="",
                where=f"layout {data.layout!r}",
                rule=f"label_scheme out of {list(rule.label_schemes)}",
                value=repr(data.label_scheme),
                fix="Correct data.label_scheme in the site's file.",
            )
        )
    return problems


def _included(path: Path | None, walk: _Walk) -> tuple[list[str], list[Problem]]:
    """The cases of the site, and those that are listed and not there."""
    if path is None:
        return sorted(walk.drafts), []
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, ValueError) as error:
        return [], [_unreadable_list(path, error)]
    listed = sorted(set(lines))
    problems = [_not_there(case_id, path) for case_id in listed if case_id not in walk.drafts]
    return [case_id for case_id in listed if case_id in walk.drafts], problems


def _stray_masks(walk: _Walk) -> Iterator[Problem]:
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
    found = [
        *channel_contradictions(data.root, rule.numbers),
        *label_contradictions(data.root, data.label_scheme),
    ]
    for expected, value in found:
        yield Problem(
            patient_id="",
            where=str(data.root / DATASET),
            rule=expected,
            value=value,
            fix="Describe the files with layout = 'custom', or correct data.label_scheme.",
        )


def _both_sets(data: SiteData, rule: LayoutRule, cases: Sequence[str]) -> Iterator[Problem]:
    """Cases of the test set that would train as well."""
    folder = data.root / rule.held_apart
    if not rule.held_apart or not folder.is_dir():
        return
    stems = {re.sub(r"_\d{4}$", "", stem) for stem, _ in _image_stems(sorted(folder.iterdir()))}
    for case_id in sorted(stems.intersection(cases)):
        yield Problem(
            patient_id=case_id,
            where=str(folder),
            rule="each case either to train or to test",
            value=f"{case_id} in both",
            fix="Remove it from one of the two.",
            names=True,
        )


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


def _no_patients(data: SiteData, rule: LayoutRule) -> Problem:
    paths = rule.images[data.modalities[0]]
    return Problem(
        patient_id="",
        where=str(data.root),
        rule=f"images at {' or '.join(paths[:2])} (.nii.gz), case {rule.case or rule.patient}",
        value="none",
        fix="Point data.root at the folder that holds the patients, or correct data.layout; "
        "`medfl check --detect` proposes one.",
    )


def _no_patient_in(case_id: str, where: Path, pattern: str) -> Problem:
    return Problem(
        patient_id=case_id,
        where=str(where),
        rule=f"a case whose name matches data.patient = {pattern!r}",
        value=repr(case_id),
        fix="Correct data.patient in the site's file, or the name.",
        names=True,
    )


def _empty_patient(patient_id: str, folder: Path) -> Problem:
    return Problem(
        patient_id=patient_id,
        where=str(folder),
        rule="a patient's images",
        value="none",
        fix="Add the images, or remove the folder.",
    )


def _unknown_folder(folder: Path, branches: Sequence[_Branch], rule: LayoutRule) -> Problem:
    names = list(dict.fromkeys(branch.names[0] for branch in branches))
    fixed = [name for name in names if "{" not in name and "*" not in name]
    patterns = [
        rule.pattern(name, known={}, ignore_case=False).pattern
        for name in names
        if name not in fixed and name != "*"
    ]
    wanted = [f"one of {fixed}"] if fixed else []
    wanted += [f"a name that matches {pattern}" for pattern in patterns]
    return Problem(
        patient_id="",
        where=str(folder),
        rule=" or ".join(wanted),
        value=repr(folder.name),
        fix="Move the folder elsewhere, or correct data.layout.",
        names=True,
    )


def _unknown_file(path: Path, branches: Sequence[_Branch], rule: LayoutRule) -> Problem:
    names = dict.fromkeys(branch.names[0] for branch in branches)
    patterns = [rule.pattern(name, known={}, ignore_case=False).pattern for name in names]
    return Problem(
        patient_id="",
        where=str(path),
        rule=" or ".join(f"a name that matches {pattern}" for pattern in patterns),
        value=repr(path.name),
        fix="Move the file elsewhere, rename it, or correct data.layout.",
        names=True,
    )


def _doubled_case(patient_id: str, first: Path, second: Path) -> Problem:
    return Problem(
        patient_id=patient_id,
        where=str(second),
        rule="each case in one folder",
        value=f"also {first}",
        fix="Remove one of the two.",
        names=True,
    )


def _wrong_count(patient_id: str, where: Path, what: str, paths: Sequence[Path]) -> Problem:
    names = ", ".join(path.name for path in paths)
    return Problem(
        patient_id=patient_id,
        where=str(where),
        rule=what,
        value=names or "none",
        fix="Keep one of the files." if paths else "Add the file, or remove the case.",
        names=bool(paths),
    )
