"""Every problem of a site's cohort in one pass, each with its fix, before any training.

Folders first, then all headers, then all voxels; a file with a faulty header is never read further.
Findings name patients and files and are for the site's own screen.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from medfl.config.site import MaskScheme, SiteConfig, SiteData
from medfl.data.cohort import Case, Cohort, Patient, split
from medfl.data.label_names import named_labels
from medfl.data.label_schemes import scheme_name, scheme_values
from medfl.data.label_values import judge_labels
from medfl.data.layouts.dataset_json import DATASET, read_description
from medfl.data.layouts.rules import rule_of
from medfl.data.layouts.survey import survey_cohort
from medfl.data.nifti.faults import Fault
from medfl.data.nifti.headers import FileFaults, Header, read_header, read_voxels
from medfl.findings import Finding, Severity

Part = Literal["headers", "voxels"]
OnProgress = Callable[[Part, int, int], None]
"""Called with what is read, the cases done, and the cases in all."""

# Air at 0 in the middle of the scale: what a z-score over the head leaves behind.
_CENTRED_BELOW = 0.05
_CENTRED_ZERO = 0.3
_MASK_OUTSIDE = 0.5
_MASK_OF_HEAD = 0.5  # of the head; the largest gliomas take up a fifth of the brain

_Remark = tuple[Severity, Path, Fault]
_Result = TypeVar("_Result")


def check_cohort(
    site: SiteConfig,
    *,
    on_progress: OnProgress = lambda _part, _done, _total: None,
) -> list[Finding]:
    """Look at every folder, header and voxel of a site; each thread holds one case at a time.

    Args:
        site: The site; its threads do the reading.
        on_progress: Who is told how far it is.

    Returns:
        All findings: errors, then warnings, then notes.
    """
    survey = survey_cohort(site.data)
    findings = [problem.finding("error") for problem in survey.problems]
    for problem in survey.left_out:  # no error where the site's file says so
        finding = problem.finding("warning")
        value = f"{finding.value}, so that this case is left out (data.incomplete)"
        findings.append(replace(finding, value=value))
    cases = [(patient.patient_id, case) for patient in survey.patients for case in patient.cases]
    owners: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    with ThreadPoolExecutor(max_workers=site.threads) as pool:

        def read(part: Part, results: Iterator[_Result]) -> Iterator[tuple[str, _Result]]:
            for done, ((patient_id, _), result) in enumerate(
                zip(cases, results, strict=True), start=1
            ):
                on_progress(part, done, len(cases))
                yield patient_id, result

        headers: list[Mapping[Path, Header]] = []
        for patient_id, (found, remarks) in read(
            "headers", pool.map(_check_headers, [case for _, case in cases])
        ):
            headers.append(found)
            findings += [_finding(remark, patient_id) for remark in remarks]
        scheme = site.data.mask_scheme
        for patient_id, (fingerprints, remarks) in read(
            "voxels",
            pool.map(
                lambda case, found: _check_voxels(case, found, scheme=scheme),
                [case for _, case in cases],
                headers,
            ),
        ):
            findings += [_finding(remark, patient_id) for remark in remarks]
            for path, fingerprint in fingerprints.items():
                owners[fingerprint].append((patient_id, path))
    for patient_id, remark in (*_repeated_images(owners), *_repeated_visits(survey.patients)):
        findings.append(_finding(remark, patient_id))
    findings += _scheme_findings(site.data)
    findings += _count_findings(site, survey.patients)
    return sorted(findings, key=lambda finding: get_args(Severity).index(finding.severity))


def _finding(remark: _Remark, patient_id: str) -> Finding:
    severity, path, fault = remark
    return Finding(
        severity=severity,
        patient=patient_id,
        name=_short(path),
        rule=fault.rule,
        value=fault.value,
        fix=fault.fix,
        names=fault.names,
    )


def _short(path: Path) -> str:
    return str(Path(path.parent.name) / path.name)


def _check_headers(case: Case) -> tuple[dict[Path, Header], list[_Remark]]:
    """The sound headers of a case, and what is wrong with the others and between them."""
    remarks: list[_Remark] = []
    headers: dict[Path, Header] = {}
    for path in dict.fromkeys([*case.images.values(), *([case.mask] if case.mask else [])]):
        try:
            headers[path] = read_header(path, volumes=1 if path == case.mask else case.volumes)
        except FileFaults as error:
            remarks += [("error", path, fault) for fault in error.faults]
        else:
            remarks += [("warning", path, fault) for fault in headers[path].remarks]
    remarks += _grid_remarks(headers)
    return headers, remarks


def _check_voxels(
    case: Case, headers: Mapping[Path, Header], *, scheme: MaskScheme
) -> tuple[dict[Path, str], list[_Remark]]:
    """A fingerprint of each sound image of a case, and what is wrong with its voxels."""
    remarks: list[_Remark] = []
    fingerprints: dict[Path, str] = {}
    head: NDArray[np.bool_] | None = None
    tumour: NDArray[np.bool_] | None = None
    for path, header in headers.items():
        try:
            voxels = read_voxels(path, header)
        except FileFaults as error:
            remarks += [("error", path, fault) for fault in error.faults]
            continue
        if path == case.mask:
            remarks += [(severity, path, fault) for severity, fault in _judge_mask(voxels, scheme)]
            tumour = voxels > 0
            continue
        for place, image in _volumes(path, voxels, count=case.volumes):
            faults = list(_judge_image(image))
            remarks += [(severity, place, fault) for severity, fault in faults]
            if not any(severity == "error" for severity, _ in faults):
                fingerprints[place] = _fingerprint(image)
                bright = image > image.min()
                head = bright if head is None or head.shape != bright.shape else head | bright
    if case.mask and tumour is not None and head is not None and tumour.shape == head.shape:
        remarks += [("warning", case.mask, fault) for fault in _judge_place(tumour, head)]
    return fingerprints, remarks


def _volumes(
    path: Path, voxels: NDArray[np.float32], *, count: int
) -> Iterator[tuple[Path, NDArray[np.float32]]]:
    """Each image of a file under a name of its own."""
    if count == 1:
        yield path, voxels
        return
    for number in range(count):
        yield path.with_name(f"{path.name}[{number}]"), voxels[..., number]


def _grid_remarks(headers: Mapping[Path, Header]) -> Iterator[_Remark]:
    """Every file of a case shares the first one's grid."""
    if not headers:
        return
    first, *others = headers
    for path in others:
        mine, reference = headers[path], headers[first]
        if mine.shape != reference.shape:
            rule = f"the shape of the case's first image, {reference.shape}"
            value = str(mine.shape)
        elif not mine.same_grid(reference):
            rule = "the transform (affine) of the case's first image"
            value = f"corners up to {mine.mm_apart(reference):.3g} mm apart"
        else:
            continue
        fix = "Register and resample all images and the mask of a case to one grid."
        yield "error", path, Fault(rule=rule, value=value, fix=fix)


def _judge_image(voxels: NDArray[np.float32]) -> Iterator[tuple[Severity, Fault]]:
    infinite = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if infinite:
        yield (
            "error",
            Fault(
                rule="finite voxels",
                value=f"{infinite} NaN or infinite ones",
                fix="Export the image again, or replace these voxels by the background's value.",
            ),
        )
        return
    if voxels.min() == voxels.max():
        yield (
            "error",
            Fault(
                rule="an image with contrast",
                value=f"{voxels.flat[0]:g} in every voxel",
                fix="Export the image again, or leave the patient out.",
            ),
        )
        return
    below = np.count_nonzero(voxels < 0) / voxels.size
    if below > _CENTRED_BELOW and np.count_nonzero(voxels == 0) / voxels.size > _CENTRED_ZERO:
        yield (
            "warning",
            Fault(
                rule="air darker than tissue",
                value=f"air at 0 and {below:.0%} of the voxels below it",
                fix="Give the images as they were before they were centred around 0.",
            ),
        )


def _judge_mask(
    voxels: NDArray[np.float32], scheme: MaskScheme
) -> Iterator[tuple[Severity, Fault]]:
    whole, wrong = judge_labels(voxels, scheme=scheme)
    if wrong:
        yield (
            "error",
            Fault(
                rule=f"mask values out of {sorted(scheme_values(scheme))} "
                f"(label_scheme {scheme_name(scheme)})",
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


def _judge_place(tumour: NDArray[np.bool_], head: NDArray[np.bool_]) -> Iterator[Fault]:
    inside = int(np.count_nonzero(tumour))
    outside = int(np.count_nonzero(tumour & ~head))
    if inside and outside > _MASK_OUTSIDE * inside:
        yield Fault(
            rule="a mask inside the head",
            value=f"{outside / inside:.0%} of it where every image is empty",
            fix="Check that the mask is this patient's, and on the grid of the images.",
        )
    filled = (inside - outside) / max(1, int(np.count_nonzero(head)))
    if filled > _MASK_OF_HEAD:
        yield Fault(
            rule="a tumour in a part of the head",
            value=f"a mask of {filled:.0%} of it",
            fix="Give the mask of the tumour; this looks like one of the whole brain.",
        )


def _fingerprint(voxels: NDArray[np.float32]) -> str:
    """Hash of the real values, the same whatever the header, number type or compression."""
    content = hashlib.blake2b(str(voxels.shape).encode(), digest_size=16)
    # In the order that they are stored in, so that nothing is copied.
    content.update(voxels.ravel(order="F").data)
    return content.hexdigest()


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
                fault = Fault(rule=rule, value=value, fix=fix, names=True)
                yield patient_id, ("warning", path, fault)
            elif (first_id, patient_id) not in named:
                named.add((first_id, patient_id))
                rule = "each person under one patient id"
                fix = "Remove one of the two folders: a person in two places is protected half."
                fault = Fault(rule=rule, value=value, fix=fix, names=True)
                yield patient_id, ("error", path, fault)


def _repeated_visits(patients: Sequence[Patient]) -> Iterator[tuple[str, _Remark]]:
    for patient in patients:
        if len(patient.cases) > 1:
            fault = Fault(
                rule="one case a patient, or several of one person",
                value=", ".join(case.case_id for case in patient.cases),
                fix="Nothing, if these are one person's: they count and are protected as one.",
                names=True,
            )
            yield patient.patient_id, ("note", Path(patient.patient_id), fault)


def _scheme_findings(data: SiteData) -> Iterator[Finding]:
    """What the masks' values mean, where nothing that was read says so."""
    rule = rule_of(data)
    for root in data.roots if rule.numbers else ():
        try:
            named = named_labels(read_description(root))
        except ValueError:
            continue  # a problem of the layout
        if named.told:
            continue
        unknown = ", ".join(map(repr, named.unknown[:5]))
        yield _of_scheme(
            rule=f"a {DATASET} that names the labels in words that are understood",
            value=f"the names {unknown}" if unknown else "no names",
            fix="Look at a mask: only the drawing tells which value is edema and which is core. "
            "Then keep label_scheme, or write [data.labels] with label_scheme = 'custom'.",
        )
    if not rule.numbers and data.label_scheme not in (*rule.label_schemes, "custom"):
        yield _of_scheme(
            rule=f"label_scheme out of {list(rule.label_schemes)}, as this source was published",
            value=repr(data.label_scheme),
            fix="Correct data.label_scheme, unless the masks were drawn or converted anew.",
        )


def _of_scheme(*, rule: str, value: str, fix: str) -> Finding:
    return Finding(
        severity="warning", patient="", name="label_scheme", rule=rule, value=value, fix=fix
    )


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
            name=", ".join(map(str, site.data.roots)),
            rule="at least 2 patients",
            value="1",
            fix="Expect an update of mostly noise; better, pool the patient with another cohort.",
        )
