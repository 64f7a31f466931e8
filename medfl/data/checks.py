"""Every problem of a site's cohort in one pass, each with its fix, before any training.

Folders first, then of each case the headers, then the voxels; a file with a faulty header is never
read further. Findings are for the site's own screen: `name` and `value` may hold file names, only
`patient` is a pseudonym.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medfl.config.site import LabelScheme, SiteConfig
from medfl.data.cohort import Case, Cohort, Patient, pseudonym, split
from medfl.data.headers import Fault, FileFaults, Header, read_header, read_voxels
from medfl.data.labels import judge_labels, scheme_values
from medfl.data.layouts import survey_cohort

Severity = Literal["error", "warning", "note"]
_Remark = tuple[Severity, Path, Fault]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a person should know about a cohort.

    Attributes:
        severity: An ``error`` forbids training, a ``warning`` deserves a look.
        patient: Pseudonym; empty for the whole cohort, and where no key was given.
        name: File, folder or setting at this site; never leaves it.
        rule: What was expected.
        value: What was found.
        fix: What to do about it.
    """

    severity: Severity
    patient: str
    name: str
    rule: str
    value: str
    fix: str


def check_cohort(
    site: SiteConfig,
    *,
    key: bytes = b"",
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Finding]:
    """Look at every folder, header and voxel of a site.

    Args:
        site: The site.
        key: Secret of the pseudonyms; without it, findings carry none.
        on_progress: Called with (cases done, cases in all) after each case.

    Returns:
        All findings: errors, then warnings, then notes.
    """
    survey = survey_cohort(site.data)
    findings = [
        Finding(
            severity="error",
            patient=_pseudonym(problem.patient_id, key),
            name=problem.where,
            rule=problem.rule,
            value=problem.value,
            fix=problem.fix,
        )
        for problem in survey.problems
    ]
    cases = [(patient.patient_id, case) for patient in survey.patients for case in patient.cases]
    owners: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for done, (patient_id, case) in enumerate(cases, start=1):
        remarks, fingerprints = _check_case(case, scheme=site.data.label_scheme)
        findings += [_finding(remark, _pseudonym(patient_id, key)) for remark in remarks]
        for path, fingerprint in fingerprints.items():
            owners[fingerprint].append((patient_id, path))
        on_progress(done, len(cases))
    for patient_id, remark in (*_repeated_images(owners), *_repeated_visits(survey.patients)):
        findings.append(_finding(remark, _pseudonym(patient_id, key)))
    findings += _count_findings(site, survey.patients)
    return sorted(findings, key=lambda finding: get_args(Severity).index(finding.severity))


def _pseudonym(patient_id: str, key: bytes) -> str:
    return pseudonym(patient_id, key=key) if key and patient_id else ""


def _finding(remark: _Remark, patient: str) -> Finding:
    severity, path, fault = remark
    return Finding(
        severity=severity,
        patient=patient,
        name=_short(path),
        rule=fault.rule,
        value=fault.value,
        fix=fault.fix,
    )


def _short(path: Path) -> str:
    return str(Path(path.parent.name) / path.name)


def _check_case(case: Case, *, scheme: LabelScheme) -> tuple[list[_Remark], dict[Path, str]]:
    """Judge all files of a case; also returns a fingerprint of each sound image."""
    remarks: list[_Remark] = []
    headers: dict[Path, Header] = {}
    for path in dict.fromkeys([*case.images.values(), *([case.mask] if case.mask else [])]):
        try:
            volumes = 1 if path == case.mask else case.volumes
            headers[path] = read_header(path, volumes=volumes)
        except FileFaults as error:
            remarks += [("error", path, fault) for fault in error.faults]
    remarks += _grid_remarks(headers)
    fingerprints: dict[Path, str] = {}
    for path, header in headers.items():
        try:
            voxels = read_voxels(path, header)
        except FileFaults as error:
            remarks += [("error", path, fault) for fault in error.faults]
            continue
        if path == case.mask:
            remarks += [(severity, path, fault) for severity, fault in _judge_mask(voxels, scheme)]
            continue
        for number in range(case.volumes):
            volume = voxels[..., number] if case.volumes > 1 else voxels
            # The only name that a volume of a file can have.
            place = path.with_name(f"{path.name}[{number}]") if case.volumes > 1 else path
            faults = list(_judge_image(volume))
            remarks += [("error", place, fault) for fault in faults]
            if not faults:
                fingerprints[place] = _fingerprint(volume)
    return remarks, fingerprints


def _grid_remarks(headers: Mapping[Path, Header]) -> Iterator[_Remark]:
    """Every file of a case shares the first one's grid."""
    if not headers:
        return
    first, *others = headers
    for path in others:
        mine, reference = headers[path], headers[first]
        if mine.shape != reference.shape:
            rule, value = f"the shape of {first.name}, {reference.shape}", str(mine.shape)
        elif not mine.same_grid(reference):
            rule = f"the transform (affine) of {first.name}"
            value = f"up to {np.abs(mine.affine - reference.affine).max():.3g} mm apart"
        else:
            continue
        fix = "Register and resample all images and the mask of a case to one grid."
        yield "error", path, Fault(rule=rule, value=value, fix=fix)


def _judge_image(voxels: NDArray[np.float32]) -> Iterator[Fault]:
    infinite = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if infinite:
        yield Fault(
            rule="finite voxels",
            value=f"{infinite} NaN or infinite ones",
            fix="Export the image again, or replace these voxels by the background's value.",
        )
    elif voxels.min() == voxels.max():
        yield Fault(
            rule="an image with contrast",
            value=f"{voxels.flat[0]:g} in every voxel",
            fix="Export the image again, or leave the patient out.",
        )


def _judge_mask(
    voxels: NDArray[np.float32], scheme: LabelScheme
) -> Iterator[tuple[Severity, Fault]]:
    whole, wrong = judge_labels(voxels, scheme=scheme)
    if wrong:
        yield (
            "error",
            Fault(
                rule=f"mask values out of {sorted(scheme_values(scheme))} (label_scheme {scheme})",
                value=", ".join(f"{value:g}" for value in wrong),
                fix="Set the label_scheme that the masks were drawn in, or correct the mask.",
            ),
        )
    elif not whole.any():
        yield (
            "warning",
            Fault(
                rule="a mask with tumour",
                value="an empty mask",
                fix="Draw the tumour, or keep the mask if the patient has none.",
            ),
        )


def _fingerprint(voxels: NDArray[np.float32]) -> str:
    """Hash of the real values, the same whatever the header, number type or compression."""
    content = str(voxels.shape).encode() + voxels.tobytes(order="F")
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _repeated_images(
    owners: Mapping[str, list[tuple[str, Path]]],
) -> Iterator[tuple[str, _Remark]]:
    """(patient id, remark) for every image that was met before; two patients are named once."""
    named: set[tuple[str, str]] = set()
    for (first_id, first_path), *others in owners.values():
        for patient_id, path in others:
            value = f"the voxels of {_short(first_path)}"
            if patient_id == first_id:
                rule = "a different image in every file"
                fix = "Replace the copy by the real image, or leave the modality or patient out."
                yield patient_id, ("warning", path, Fault(rule=rule, value=value, fix=fix))
            elif (first_id, patient_id) not in named:
                named.add((first_id, patient_id))
                rule = "each person under one patient id"
                fix = "Remove one of the two folders: a person in two places is protected half."
                yield patient_id, ("error", path, Fault(rule=rule, value=value, fix=fix))


def _repeated_visits(patients: tuple[Patient, ...]) -> Iterator[tuple[str, _Remark]]:
    for patient in patients:
        if len(patient.cases) > 1:
            fault = Fault(
                rule="one case a patient, or several of one person",
                value=", ".join(case.case_id for case in patient.cases),
                fix="Nothing, if these are one person's: they count and are protected as one.",
            )
            yield patient.patient_id, ("note", Path(patient.patient_id), fault)


def _count_findings(site: SiteConfig, patients: tuple[Patient, ...]) -> Iterator[Finding]:
    """The public number of patients must be the true one: it is the mechanism's divisor."""
    if not patients:
        return
    cohort = Cohort(patients=patients, label_scheme=site.data.label_scheme)
    # How many are held out does not depend on the key.
    parts = split(cohort, held_out=site.data.held_out, key=b"")
    training, held_out = len(parts.training), len(parts.held_out)
    if training != site.declared_patients:
        yield Finding(
            severity="error",
            patient="",
            name="declared_patients",
            rule=f"{site.declared_patients} training patients, as declared",
            value=f"{training} ({len(patients)} in all, {held_out} held out)",
            fix=f"Add the missing patients, or declare {training} and tell the coordinator.",
        )
    if len(patients) == 1:
        yield Finding(
            severity="warning",
            patient="",
            name=str(site.data.root),
            rule="at least 2 patients",
            value="1",
            fix="Expect an update of mostly noise; better, pool the patient with another cohort.",
        )
