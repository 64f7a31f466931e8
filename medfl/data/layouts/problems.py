"""What can be wrong with a site's folders, each with the rule, what was found, and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfl.config.site import SiteData
from medfl.data.layouts.rule import LayoutRule
from medfl.findings import Finding, Severity


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

    def finding(self, severity: Severity) -> Finding:
        """As one of a site's findings."""
        return Finding(
            severity=severity,
            patient=self.patient_id,
            name=self.where,
            rule=self.rule,
            value=self.value,
            fix=self.fix,
            names=self.names,
        )


def missing_folder(folder: Path) -> Problem:
    """Where a folder should be, there is none."""
    return Problem(
        patient_id="",
        where=str(folder),
        rule="a folder",
        value="a file" if folder.exists() else "nothing",
        fix="Correct the path, or mount the disk that holds it.",
    )


def unreadable(patient_id: str, folder: Path, error: OSError) -> Problem:
    """A folder may not be read."""
    return Problem(
        patient_id=patient_id,
        where=str(folder),
        rule="a readable folder",
        value=str(error.strerror),
        fix="Let medfl's user read the folder.",
    )


def no_patients(data: SiteData, rule: LayoutRule) -> Problem:
    """Nothing below the root fits the layout."""
    paths = rule.images[data.modalities[0]]
    return Problem(
        patient_id="",
        where=", ".join(map(str, data.roots)),
        rule=f"images at {' or '.join(paths[:2])} (.nii.gz), case {rule.case or rule.patient}",
        value="none",
        fix="Point data.root at the folder that holds the patients, or correct data.layout; "
        "`medfl check --detect` proposes one.",
    )


def no_patient_in(case_id: str, where: Path, pattern: str) -> Problem:
    """The person cannot be told from the name of a case."""
    return Problem(
        patient_id=case_id,
        where=str(where),
        rule=f"a case whose name matches data.patient = {pattern!r}",
        value=repr(case_id),
        fix="Correct data.patient in the site's file, or the name.",
        names=True,
    )


def nested_roots(outer: Path, inner: Path) -> Problem:
    """A folder of the site is another one, or lies within it."""
    return Problem(
        patient_id="",
        where=str(inner),
        rule="folders in data.root that lie apart",
        value=f"one that is, or lies within, {outer}",
        fix="Take one of the two off data.root: its cases would be met twice.",
        names=True,
    )


def ambiguous_case(case_id: str, where: Path) -> Problem:
    """Two cases have one name."""
    return Problem(
        patient_id=case_id,
        where=str(where),
        rule="a name of its own for every case, made of patient and session",
        value=f"another case called {case_id!r} too",
        fix="Rename one of the two folders.",
        names=True,
    )


def names_alike(patient_ids: Iterable[str], where: Path) -> Problem:
    """Patients whose names are one, but for capital letters."""
    first, *others = patient_ids
    return Problem(
        patient_id=first,
        where=str(where),
        rule="names of patients that differ in more than capital letters",
        value=", ".join(map(repr, (first, *others))),
        fix="Rename the folders: one person under two names would be protected half.",
        names=True,
    )


def divided_patient(patient_id: str, parts: Iterable[str], where: Path) -> Problem:
    """A pattern of the site makes several people of one."""
    return Problem(
        patient_id=patient_id,
        where=str(where),
        rule="cases of one person under one patient",
        value=f"{patient_id!r} as {', '.join(map(repr, parts))}",
        fix="Correct data.patient: it may join what the layout tells apart, and divides nobody.",
        names=True,
    )


def unprintable(path: Path) -> Problem:
    """A file or folder has a name that cannot be shown."""
    return Problem(
        patient_id="",
        where=f"{path.parent}/{ascii(path.name)[1:-1]}",
        rule="a name of printable characters in UTF-8",
        value=ascii(path.name),
        fix="Rename it, and check that nothing else was lost when it was copied.",
        names=True,
    )


def empty_patient(patient_id: str, folder: Path) -> Problem:
    """A person's folder holds no case."""
    return Problem(
        patient_id=patient_id,
        where=str(folder),
        rule="a patient's images",
        value="none",
        fix="Add the images, or remove the folder.",
    )


def unknown_folder(folder: Path, expected: Sequence[str], rule: LayoutRule) -> Problem:
    """A folder has a name that the layout does not know."""
    names = list(dict.fromkeys(expected))
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


def unknown_file(path: Path, expected: Sequence[str], rule: LayoutRule) -> Problem:
    """A file has a name that the layout does not know."""
    names = dict.fromkeys(expected)
    patterns = [rule.pattern(name, known={}, ignore_case=False).pattern for name in names]
    return Problem(
        patient_id="",
        where=str(path),
        rule=" or ".join(f"a name that matches {pattern}" for pattern in patterns),
        value=repr(path.name),
        fix="Move the file elsewhere, rename it, or correct data.layout.",
        names=True,
    )


def doubled_case(patient_id: str, first: Path, second: Path) -> Problem:
    """A case lies in two folders, of one root or of two."""
    return Problem(
        patient_id=patient_id,
        where=str(second),
        rule="each case in one folder",
        value=f"also {first}",
        fix="Remove one of the two, or rename it if it is another examination or person.",
        names=True,
    )


def undecided(
    patient_id: str, where: Path, what: str, paths: Sequence[Path], values: Mapping[str, set[str]]
) -> Problem:
    """Of several files of BIDS, nothing says which one counts.

    `values` are those of each entity in which the files differ, empty for a file without it.
    """
    told = " and ".join(
        f"{entity} {', '.join(repr(value) for value in sorted(met))}"
        for entity, met in sorted(values.items())
    )
    entity, met = min(values.items())
    return Problem(
        patient_id=patient_id,
        where=str(where),
        rule=what,
        value=f"{', '.join(path.name for path in paths)}, which differ in {told}",
        fix=f'Choose in the site\'s file: [data.bids] with {entity} = "{max(met)}"; a list is in '
        'order of preference, and "" is for files without the entity.',
        names=True,
    )


def not_chosen(
    patient_id: str,
    where: Path,
    what: str,
    paths: Sequence[Path],
    choice: Mapping[str, Sequence[str]],
) -> Problem:
    """All files of BIDS were left out by the site's own choice."""
    wanted = " and ".join(f"{entity} = {list(values)}" for entity, values in choice.items())
    return Problem(
        patient_id=patient_id,
        where=str(where),
        rule=f"{what} by data.bids, {wanted}",
        value=", ".join(path.name for path in paths),
        fix="Add the value to the list in data.bids, after those that are preferred.",
        names=True,
    )


def _holds_pairs(folder: Path) -> bool:
    try:
        return any(path.with_suffix(".img").is_file() for path in folder.glob("*.hdr"))
    except OSError:
        return False


def wrong_count(patient_id: str, where: Path, what: str, paths: Sequence[Path]) -> Problem:
    """A file is missing, or there are several."""
    alike = len({path.name for path in paths}) < len(paths)
    names = ", ".join(str(path) if alike else path.name for path in paths)
    fix = "Keep one of the files." if paths else "Add the file, or remove the case."
    if not paths and _holds_pairs(where):
        names = "none, but pairs of .hdr and .img"
        fix = "Convert every pair to a single .nii.gz, for example with fslchfiletype NIFTI_GZ."
    return Problem(
        patient_id=patient_id,
        where=str(where),
        rule=what,
        value=names or "none",
        fix=fix,
        names=bool(paths),
    )
