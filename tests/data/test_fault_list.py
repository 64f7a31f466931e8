"""Every fault that a cohort can have, by name: found by its rule, with a fix, and nothing else.

The faults of one case are those of `pipelines/planted_faults.py`; those of a whole cohort are made
here. Each is planted in a sound cohort, which has no findings at all.
"""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
import random
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest

from medfl.config.site import SiteConfig
from medfl.data.checks import check_cohort
from medfl.data.layouts.survey import read_cohort
from medfl.data.nifti.headers import FileFaults, read_header, read_voxels
from medfl.data.transforms import Frame, prepare_case
from medfl.errors import DataError
from medfl.findings import Finding

DAMAGED, SOUND = "BraTS2021_00000", "BraTS2021_00001"


def _planted_faults() -> ModuleType:
    path = Path(__file__).parents[2] / "pipelines" / "planted_faults.py"
    spec = importlib.util.spec_from_file_location("planted_faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASE_FAULTS: Mapping[str, Callable[[Path], None]] = _planted_faults().CASE_FAULTS


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The only finding that a fault may have.

    Attributes:
        rule: Part of the finding's rule.
        value: Part of the finding's value.
        severity: Of the finding.
        trains: Whether one case by itself can be prepared; what forbids it is then another case, a
            file that is missing or doubled, or nothing.
        times: Findings with this rule; one for each of the case's files where all have the fault.
    """

    rule: str
    value: str = ""
    severity: str = "error"
    trains: bool = False
    times: int = 1


def warns(rule: str, value: str = "", *, times: int = 1) -> Expected:
    return Expected(rule=rule, value=value, severity="warning", trains=True, times=times)


def error(rule: str, value: str = "", *, trains: bool = False) -> Expected:
    return Expected(rule=rule, value=value, trains=trains)


LABELS = {"labels": {"background": 0, "edema": 1, "NCR": 2, "enhancing tumor": 3}}
NAMED = json.dumps(LABELS)
TRANSFORM = "a finite, invertible transform to millimetres"
OFFSET = "voxels to begin after"
GZIP = "intact gzip data"
LENGTH = "uncompressed bytes, as the header says"
VALUES = "mask values out of [0, 1, 2, 4] (label_scheme brats)"
SHAPE = "the shape of the case's first image"
AFFINE = "the transform (affine) of the case's first image"

EXPECTED: dict[str, Expected] = {
    "four dimensions": error("3 dimensions", "4 (16 x 20 x 12 x 2)"),
    "two dimensions": error("3 dimensions", "2 (16 x 20)"),
    "zero dimension": error("at least 1 voxel along each axis", "0 x 20 x 12"),
    "negative dimension": error("at least 1 voxel along each axis", "16 x -5 x 12"),
    "absurd size": error("at most 134217728 voxels", "32767 x 32767 x 32767"),
    "zero pixdim": error("voxel sizes (pixdim) above 0 mm", "0 x 2 x 3"),
    "negative pixdim": error("voxel sizes (pixdim) above 0 mm", "-2 x 2 x 3"),
    "NaN pixdim": error("voxel sizes (pixdim) above 0 mm", "2 x nan x 3"),
    "NaN sform": error(TRANSFORM, "nan"),
    "infinite sform": error(TRANSFORM, "inf"),
    "all-zero sform": error(TRANSFORM, "[0.0, 0.0, 0.0, 0.0]"),
    "flat sform": error(TRANSFORM, "5.0"),
    "sform far away": error(TRANSFORM, "e+30"),
    "transform of an unknown kind": error("sform_code and qform_code out of", "99 and 0"),
    "infinite slope": error("a finite scale", "inf, 0"),
    "infinite intercept": error("a finite scale", "2, -inf"),
    "voxels before the header's end": error(OFFSET, "0"),
    "voxels far behind the header": error(OFFSET, "1e+09"),
    "complex voxels": error("whole or real numbers as voxels", "data type 32"),
    "undefined data type": error("whole or real numbers as voxels", "data type 999"),
    "half of a pair": error("a NIfTI header in one file with its voxels", "one of a pair"),
    "no magic word": error("a NIfTI header in one file with its voxels", "another magic word"),
    "image of many metres": error("at most 1000 mm along each axis", "3.2e+04 x 40 x 36"),
    "tiny voxels": warns("voxels of 0.1 to 20 mm", "0.02 x 0.02 x 0.02"),
    "huge voxels": warns("voxels of 0.1 to 20 mm", "2 x 2 x 45"),
    "two voxel sizes": warns("one voxel size", "2 x 2 x 3.5 and 2 x 2 x 3 mm"),
    "metres": error("millimetres as the unit of space", "metres"),
    "micrometres": error("millimetres as the unit of space", "micrometres"),
    "an unknown unit": warns("millimetres as the unit of space", "code 5"),
    "sform and qform apart": warns("sform and qform that agree", "40 mm apart"),
    "sform and qform turned": warns("sform and qform that agree", "24.2 mm apart"),
    "sheared transform": warns("axes at right angles", "degrees", times=5),
    "no orientation": warns("an orientation", "none", times=5),
    "few slices": warns("at least 8 voxels along each axis", "5", times=5),
    "empty file": error("an image", "an empty file"),
    "empty gzip file": error("an image", "an empty file"),
    "web page": error("a NIfTI image", "a web page"),
    "web page in gzip": error("a NIfTI image", "a web page"),
    "plain text": error("gzip data in files named .gz", "other data"),
    "other data in gzip": error("a NIfTI header", "other data"),
    "cut off in the header": error(GZIP, "a truncated file"),
    "cut off in the voxels": error(GZIP, "a truncated file"),
    "cut off by a byte": error(GZIP, "a truncated file"),
    "flipped bit": error(GZIP, "damaged data"),
    "fewer voxels than announced": error(LENGTH),
    "uncompressed and cut off": error(LENGTH),
    "uncompressed under .gz": error("gzip data in files named .gz", "other data"),
    "compressed under .nii": error("gzip data only in files named .gz", "gzip data"),
    "gzip bomb": error(LENGTH, "many more"),
    "NaN voxel": error("finite voxels", "1 NaN or infinite ones"),
    "infinite voxel": error("finite voxels", "1 NaN or infinite ones"),
    "voxel beyond single precision": error("finite voxels", "1 NaN or infinite ones"),
    "constant channel": error("an image with contrast", "7 in every voxel", trains=True),
    "empty channel": error("an image with contrast", "0 in every voxel", trains=True),
    "centred image": warns("air darker than tissue"),
    "another shape": error(SHAPE, "(16, 20, 11)"),
    "another transform": error(AFFINE, "up to 4 mm apart"),
    "turned by half a degree": error(AFFINE, "up to 0.422 mm apart"),
    "voxels larger by a hair": error(AFFINE, "up to 0.586 mm apart"),
    "mask of another shape": error(SHAPE, "(16, 20, 11)"),
    "mask with another transform": error(AFFINE, "up to 4 mm apart"),
    "mask turned by half a degree": error(AFFINE, "up to 0.422 mm apart"),
    "label of another year": error(VALUES, "3"),
    "label between two": error(VALUES, "0.5"),
    "negative label": error(VALUES, "-1"),
    "label beyond a byte": error(VALUES, "1000"),
    "NaN label": error(VALUES, "nan"),
    "empty mask": warns("a mask with tumour", "an empty mask"),
    "mask of the whole brain": warns("a tumour in a part of the head", "100% of it"),
    "mask outside the head": warns("a mask inside the head", "100%"),
    "missing modality": error("one t2f image (*_flair)", "none"),
    "missing mask": error("one mask (*_seg)", "none"),
    "doubled modality": error("one t2w image (*_t2)", "_t2.nii", trains=True),
    "doubled by capital letters": error("one t2w image (*_t2)", "_T2.NII.GZ", trains=True),
    "doubled mask": error("one mask (*_seg)", "_seg.nii", trains=True),
    "only a hidden copy": error("one t2w image (*_t2)", "none"),
    "name of another case": error("one t2w image (*_t2)", "none"),
    "dangling link": error("one t2w image (*_t2)", "none"),
    "link to itself": error("one t2w image (*_t2)", "none"),
    "folder in place of a file": error("one t2w image (*_t2)", "none"),
    "one modality as another": warns("a different image in every file", "_t1.nii.gz"),
    "one image of two patients": error("each person under one patient id", DAMAGED, trains=True),
}


def test_every_fault_of_a_case_is_in_the_list() -> None:
    assert set(EXPECTED) == set(CASE_FAULTS)
    assert len(EXPECTED) + len(COHORT_FAULTS) >= 100


def only(found: list[Finding], expected: Expected) -> Finding:
    """The finding that was expected, where there is no other, not even a warning."""
    assert [(f.severity, f.rule == found[0].rule) for f in found] == [
        (expected.severity, True)
    ] * expected.times, found
    finding = found[0]
    assert expected.rule in finding.rule
    assert expected.value in finding.value
    assert finding.fix.endswith(".")
    return finding


@pytest.fixture
def pair(hospital: Any) -> Any:
    """Two sound patients, of whom the tests damage the first."""
    hospital.add(DAMAGED, seed=0)
    hospital.add(SOUND, seed=1)
    return hospital


def test_the_sound_cohort_has_no_findings(pair: Any) -> None:
    assert check_cohort(pair.site(declared_patients=2)) == []


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_of_a_case_is_found(fault: str, pair: Any) -> None:
    CASE_FAULTS[fault](pair.root / DAMAGED)
    finding = only(check_cohort(pair.site(declared_patients=2)), EXPECTED[fault])
    assert DAMAGED in f"{finding.patient} {finding.value}"


@pytest.mark.parametrize("fault", EXPECTED)
def test_training_meets_a_fault_with_an_error_of_its_own(fault: str, pair: Any) -> None:
    """Whatever changes after the preflight: a `DataError`, never wrong voxels and never a crash."""
    CASE_FAULTS[fault](pair.root / DAMAGED)
    frame = Frame(
        modalities=("t1n", "t1c", "t2w", "t2f"),
        regions=("WT",),
        spacing="native",
        label_scheme="brats",
    )
    if EXPECTED[fault].trains:
        assert prepare_case(pair.case(DAMAGED), frame).image_CDHW.isfinite().all()
        return
    with pytest.raises(DataError):
        prepare_case(pair.case(DAMAGED), frame)


# What is wrong with folders, names and settings


@dataclass(frozen=True, kw_only=True)
class CohortFault:
    """A site whose cohort is wrong as a whole.

    Attributes:
        make: Fills the hospital and says what its `[data]` table has.
        expected: The only finding.
        patients: Declared number.
        refused: Whether no training may read the cohort at all.
    """

    make: Callable[[Any], dict[str, Any]]
    expected: Expected
    patients: int = 2
    refused: bool = True


def _two(hospital: Any, then: Callable[[Path], object]) -> dict[str, Any]:
    """Two sound patients, and something else under their root."""
    hospital.add(DAMAGED, seed=0)
    hospital.add(SOUND, seed=1)
    then(hospital.root)
    return {}


def _beside(then: Callable[[Path], object]) -> Callable[[Any], dict[str, Any]]:
    return lambda hospital: _two(hospital, then)


def _graded(hospital: Any, *cases: str) -> dict[str, Any]:
    for number, case in enumerate(cases):
        group, name = case.split("/")
        hospital.add(name, seed=number, group=group)
    return {"layout": "brats2019"}


def _decathlon(hospital: Any, *, volumes: int = 4, constant: bool = False) -> dict[str, Any]:
    for number, name in enumerate(("BRATS_001", "BRATS_002")):
        heads = [hospital.head(hospital.shape, seed=10 * number + n) for n in range(volumes)]
        if constant and number == 0:
            heads[2] = np.full_like(heads[2], 5)
        hospital.write(hospital.root / f"imagesTr/{name}.nii.gz", np.stack(heads, axis=-1))
        label = hospital.tumour(hospital.shape) % 4
        hospital.write(hospital.root / f"labelsTr/{name}.nii.gz", label)
    (hospital.root / "dataset.json").write_text(NAMED)
    return {"layout": "msd", "label_scheme": "msd"}


def _numbered(hospital: Any, *cases: str) -> dict[str, Any]:
    """nnU-Net's flat folders."""
    for number, name in enumerate(cases):
        for channel in range(4):
            path = hospital.root / f"imagesTr/{name}_000{channel}.nii.gz"
            hospital.write(path, hospital.head(hospital.shape, seed=10 * number + channel))
        label = hospital.tumour(hospital.shape) % 4
        hospital.write(hospital.root / f"labelsTr/{name}.nii.gz", label)
    (hospital.root / "dataset.json").write_text(NAMED)
    return {"layout": "nnunet", "label_scheme": "nnunet"}


def _named(hospital: Any) -> dict[str, Any]:
    (hospital.root / "dataset.json").write_text(NAMED)
    return {"label_scheme": "nnunet"}


def _described(hospital: Any, content: str) -> dict[str, Any]:
    data = _decathlon(hospital)
    (hospital.root / "dataset.json").write_text(content)
    return data


def _tested(hospital: Any, name: str) -> None:
    (hospital.root / "imagesTs").mkdir()
    (hospital.root / "imagesTs" / name).touch()


def _in_decathlon_s_test_set(hospital: Any) -> dict[str, Any]:
    _tested(hospital, "BRATS_002.nii.gz")
    return _decathlon(hospital)


def _another_visit_in_the_test_set(hospital: Any) -> dict[str, Any]:
    _tested(hospital, "anna_post_0000.nii.gz")
    data = _numbered(hospital, "anna_pre", "bert_pre")
    return {**data, "patient": r"(?P<patient>\w+)_(pre|post)"}


def _listed(hospital: Any, text: bytes) -> dict[str, Any]:
    path = hospital.root.parent / "cases.txt"
    path.write_bytes(text)
    return {**_two(hospital, lambda _: None), "include": path}


def _mask_without_images(hospital: Any) -> dict[str, Any]:
    data = _decathlon(hospital)
    hospital.write(hospital.root / "labelsTr/BRATS_003.nii.gz", np.zeros(hospital.shape, np.uint8))
    return data


def _stray_file(hospital: Any) -> dict[str, Any]:
    data = _decathlon(hospital)
    (hospital.root / "imagesTr/somebody.nii.gz").touch()
    return data


def _too_deep(hospital: Any) -> dict[str, Any]:
    hospital.add("BraTS19_TMC_06290_1", group="HGG")
    return {"layout": "brats2019", "root": hospital.root / "HGG"}


def _same_images(hospital: Any) -> dict[str, Any]:
    hospital.add(DAMAGED, seed=3)
    hospital.add(SOUND, seed=3)
    return {}


def _empty_subject(hospital: Any) -> dict[str, Any]:
    """BIDS, with one subject whose folder holds nothing."""
    for number, name in enumerate(("sub-01", "sub-02")):
        folder = hospital.root / name / "anat"
        for channel, ending in enumerate(("T1w", "ce-gd_T1w", "T2w", "FLAIR")):
            values = hospital.head(hospital.shape, seed=10 * number + channel)
            hospital.write(folder / f"{name}_{ending}.nii.gz", values)
        hospital.write(folder / f"{name}_desc-tumour_dseg.nii.gz", hospital.tumour(hospital.shape))
    (hospital.root / "sub-03").mkdir()
    return {"layout": "bids"}


def _none(_: Any) -> dict[str, Any]:
    return {}


def _file_as_root(hospital: Any) -> dict[str, Any]:
    path = hospital.root / "file"
    path.touch()
    return {"root": path}


def _alone(hospital: Any) -> dict[str, Any]:
    hospital.add(DAMAGED)
    return {}


def _text(**content: Any) -> str:
    return json.dumps(content)


COHORT_FAULTS: dict[str, CohortFault] = {
    "one patient in two folders": CohortFault(
        make=lambda h: _graded(
            h, "HGG/BraTS19_TMC_0_1", "LGG/BraTS19_TMC_0_1", "HGG/BraTS19_A_1_1"
        ),
        expected=error("each case in one folder", "HGG/BraTS19_TMC_0_1"),
    ),
    "equal content under two ids": CohortFault(
        refused=False,
        make=_same_images,
        expected=error("each person under one patient id", DAMAGED),
    ),
    "several timepoints": CohortFault(
        refused=False,
        make=lambda h: _graded(h, "HGG/BraTS19_A_0_1", "HGG/BraTS19_A_0_2", "HGG/BraTS19_A_1_1"),
        expected=Expected(
            rule="one case a patient, or several of one person",
            value="BraTS19_A_0_1, BraTS19_A_0_2",
            severity="note",
        ),
    ),
    "one patient in train and test": CohortFault(
        make=_in_decathlon_s_test_set,
        expected=error("each patient either to train or to test", "BRATS_002"),
    ),
    "another timepoint in the test set": CohortFault(
        make=_another_visit_in_the_test_set,
        expected=error("each patient either to train or to test", "anna"),
    ),
    "mixed years": CohortFault(
        make=_beside(lambda root: (root / "BraTS20_Training_001").mkdir()),
        expected=error("a name that matches", "BraTS20_Training_001"),
    ),
    "folder of somebody else": CohortFault(
        make=_beside(lambda root: (root / "Smith, John").mkdir()),
        expected=error("a name that matches", "Smith, John"),
    ),
    "person without a case": CohortFault(
        make=_empty_subject, expected=error("a patient's images", "none")
    ),
    "name in another code page": CohortFault(
        make=_beside(lambda root: (root / "M\udcfcller").mkdir()),
        expected=error("a name of printable characters in UTF-8", r"M\udcfcller"),
    ),
    "name with a control character": CohortFault(
        make=_beside(lambda root: (root / "red\x1b[31m").mkdir()),
        expected=error("a name of printable characters in UTF-8", r"red\x1b[31m"),
    ),
    "stray file among flat ones": CohortFault(
        make=_stray_file, expected=error("a name that matches", "somebody.nii.gz")
    ),
    "mask without images": CohortFault(
        make=_mask_without_images, expected=error("images beside every mask", "none")
    ),
    "constant volume of a 4-D file": CohortFault(
        refused=False,
        make=lambda h: _decathlon(h, constant=True),
        expected=error("an image with contrast", "5 in every voxel"),
    ),
    "three volumes of four": CohortFault(
        refused=False,
        make=lambda h: _decathlon(h, volumes=3),
        expected=Expected(rule="4 dimensions with 4 volumes", value="16 x 20 x 12 x 3", times=2),
    ),
    "channels in another order": CohortFault(
        make=lambda h: _described(h, _text(modality={"0": "T1w"}, **LABELS)),
        expected=error("channel 0 to be t2f", "'T1w'"),
    ),
    "channels in another order, after a byte order mark": CohortFault(
        make=lambda h: _described(h, "\ufeff" + _text(modality={"0": "T1w"}, **LABELS)),
        expected=error("channel 0 to be t2f", "'T1w'"),
    ),
    "labels with another meaning": CohortFault(
        make=lambda h: _described(h, _text(labels={"2": "edema"})),
        expected=error("2 to be TC and WT, as in label_scheme 'msd'", "'edema', WT"),
    ),
    "description cut off": CohortFault(
        make=lambda h: _described(h, _text(modality={"0": "T1w"})[:-2]),
        expected=error("a readable JSON object", "a file that is cut off or no JSON"),
    ),
    "description empty": CohortFault(
        make=lambda h: _described(h, ""),
        expected=error("a readable JSON object", "an empty file"),
    ),
    "description that is a list": CohortFault(
        make=lambda h: _described(h, "[]"),
        expected=error("a readable JSON object", "a JSON list"),
    ),
    "description of nested brackets": CohortFault(
        make=lambda h: _described(h, "[" * 100_000),
        expected=error("a readable JSON object", "a file that is cut off or no JSON"),
    ),
    "layout of another source": CohortFault(
        make=lambda h: {**_two(h, lambda _: None), "layout": "fets2022"},
        expected=Expected(rule="a name that matches", times=2),
    ),
    "root too deep": CohortFault(make=_too_deep, expected=error("one of ['HGG', 'LGG']")),
    "scheme of another source": CohortFault(
        refused=False,
        make=lambda h: {**_two(h, lambda _: None), "label_scheme": "brats2015"},
        expected=warns("label_scheme out of ['brats']", "'brats2015'"),
    ),
    "modality that the layout lacks": CohortFault(
        make=lambda _: {"layout": "lgg", "label_scheme": "lgg"},
        expected=error("modalities out of ['t1n', 't1c', 't2f']", "t2w"),
    ),
    "other kind of folder": CohortFault(
        make=lambda h: {**_two(h, lambda _: None), **_named(h), "layout": "nnunet"},
        expected=Expected(rule="one of ['imagesTr']", times=2),
    ),
    "listed case that is not there": CohortFault(
        make=lambda h: _listed(h, f"{DAMAGED}\n {SOUND} \r\n\nBraTS2021_00009\n".encode()),
        expected=error("only cases that are below data.root", "BraTS2021_00009"),
    ),
    "empty site": CohortFault(make=_none, expected=error("images at", "none")),
    "missing root": CohortFault(
        make=lambda h: {"root": h.root / "away"}, expected=error("a folder", "nothing")
    ),
    "file as root": CohortFault(make=_file_as_root, expected=error("a folder", "a file")),
    "one-patient site": CohortFault(
        refused=False, make=_alone, expected=warns("at least 2 patients", "1"), patients=1
    ),
    "more patients than declared": CohortFault(
        refused=False,
        make=lambda h: _two(h, lambda _: None),
        expected=error("1 training patients, as declared", "2 (2 in all"),
        patients=1,
    ),
    "fewer patients than declared": CohortFault(
        refused=False,
        make=lambda h: _two(h, lambda _: None),
        expected=error("3 training patients, as declared", "2 (2 in all"),
        patients=3,
    ),
}


@pytest.mark.parametrize("fault", COHORT_FAULTS)
def test_a_fault_of_a_cohort_is_found(fault: str, hospital: Any) -> None:
    planted = COHORT_FAULTS[fault]
    data = planted.make(hospital)
    site: SiteConfig = hospital.site(declared_patients=planted.patients, **data)
    found = check_cohort(site)
    only(found, planted.expected)
    # Whatever a folder is called, its findings can be written and shown.
    json.dumps([vars(finding) for finding in found], ensure_ascii=False).encode()
    if planted.refused:
        with pytest.raises(DataError):
            read_cohort(site.data)


def _frame(site: SiteConfig) -> Frame:
    return Frame(
        modalities=site.data.modalities,
        regions=("WT",),
        spacing="native",
        label_scheme=site.data.label_scheme,
    )


# What medfl's user may not read; root may read everything, so the refusals are made here


@dataclass(frozen=True, kw_only=True)
class Closed:
    """A place that the system refuses to open.

    Attributes:
        place: Below the root.
        calls: What is refused there, and in everything below.
        expected: The only finding.
        make: Fills the hospital.
    """

    place: str
    calls: tuple[str, ...]
    expected: Expected
    make: Callable[[Any], dict[str, Any]] = lambda hospital: _two(hospital, lambda _: None)


FOLDER = error("a readable folder", "Permission denied")
CLOSED: dict[str, Closed] = {
    "root": Closed(place="", calls=("stat", "iterdir"), expected=FOLDER),
    "folder of a case": Closed(place=DAMAGED, calls=("iterdir",), expected=FOLDER),
    "folder that may only be listed": Closed(place=f"{DAMAGED}/", calls=("stat",), expected=FOLDER),
    "file": Closed(
        place=f"{DAMAGED}/{DAMAGED}_t2.nii.gz",
        calls=("open",),
        expected=error("a readable file", "Permission denied"),
    ),
    "folder of the test set": Closed(
        place="imagesTs",
        calls=("iterdir",),
        expected=FOLDER,
        make=lambda hospital: _in_decathlon_s_test_set(hospital),
    ),
}


@pytest.mark.parametrize("closed", CLOSED)
def test_what_may_not_be_read_is_found(
    closed: str, hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CLOSED[closed]
    site = hospital.site(declared_patients=2, **case.make(hospital))
    refused = f"{hospital.root}/{case.place}" if case.place else str(hospital.root)

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(path: Path, *arguments: Any, **named: Any) -> Any:
            if str(path).startswith(refused):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *arguments, **named)

        return guarded

    for name in case.calls:
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))
    only(check_cohort(site), case.expected)
    with pytest.raises(DataError):
        for patient in read_cohort(site.data).patients:
            prepare_case(patient.cases[0], _frame(site))


# What looks odd, and is sound


def _other_byte_order(case: Path) -> None:
    path = case / f"{case.name}_t2.nii.gz"
    image = nibabel.load(path)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.float32)
    swapped = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, header)
    nibabel.save(swapped, path)


def _second_version(case: Path) -> None:
    path = case / f"{case.name}_t2.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti2Image(np.asarray(image.dataobj), image.affine), path)


def _with_fields(*fields: tuple[int, str, float], ending: str = "t2") -> Callable[[Path], None]:
    def change(case: Path) -> None:
        path = case / f"{case.name}_{ending}.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        for offset, code, value in fields:
            struct.pack_into(f"<{code}", content, offset, value)
        path.write_bytes(gzip.compress(content))

    return change


def _in_members(case: Path) -> None:
    path = case / f"{case.name}_t2.nii.gz"
    content = gzip.decompress(path.read_bytes())
    halves = gzip.compress(content[:1000]) + gzip.compress(content[1000:])
    path.write_bytes(halves + bytes(512))


def _upper_case(case: Path) -> None:
    path = case / f"{case.name}_t2.nii.gz"
    path.rename(case / f"{case.name}_T2.NII.GZ")


def _linked(case: Path) -> None:
    path = case / f"{case.name}_t2.nii.gz"
    elsewhere = case.parent.parent / "elsewhere.nii.gz"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _archived(case: Path) -> None:
    (case / f"._{case.name}_t2.nii.gz").write_bytes(b"resource fork")
    (case.parent / "__MACOSX" / case.name).mkdir(parents=True)
    (case.parent / "name_mapping.csv").write_text("a,b\r\n")
    (case / f"{case.name}_t2.json").write_text("{}")


SLOPE, SFORM, QFORM, QFAC = 112, 254, 252, 76
SOUND_ODDITIES: dict[str, Callable[[Path], None]] = {
    "suffix in capital letters": _upper_case,
    "remains of an archive, tables, sidecars": _archived,
    "link to an image elsewhere": _linked,
    "other byte order": _other_byte_order,
    "NIfTI-2": _second_version,
    "gzip in members, with padding": _in_members,
    "slope of zero": _with_fields((SLOPE, "f", 0.0)),
    "slope that is no number": _with_fields((SLOPE, "f", float("nan"))),
    "scale a hair under one": _with_fields((SLOPE, "f", 0.99999994), ending="seg"),
    "qfac of zero": _with_fields((QFORM, "h", 1), (QFAC, "f", 0.0)),
    "qform only": _with_fields((SFORM, "h", 0), (QFORM, "h", 1)),
    "voxels at a later byte": lambda case: _later(case / f"{case.name}_t2.nii.gz"),
}


def _later(path: Path) -> None:
    content = gzip.decompress(path.read_bytes())
    header = bytearray(content[:352])
    struct.pack_into("<f", header, 108, 400.0)
    path.write_bytes(gzip.compress(bytes(header) + bytes(48) + content[352:]))


@pytest.mark.parametrize("oddity", SOUND_ODDITIES)
def test_what_is_sound_has_no_finding_and_keeps_its_voxels(oddity: str, pair: Any) -> None:
    frame = Frame(modalities=("t2w",), regions=("WT",), spacing="native", label_scheme="brats")
    before = prepare_case(pair.case(DAMAGED), frame)
    SOUND_ODDITIES[oddity](pair.root / DAMAGED)
    site = pair.site(declared_patients=2)
    assert check_cohort(site) == []
    (damaged, _) = read_cohort(site.data).patients
    after = prepare_case(damaged.cases[0], frame)
    assert np.array_equal(before.image_CDHW, after.image_CDHW)
    assert np.array_equal(before.regions_RDHW, after.regions_RDHW)


# Against another reader


@pytest.mark.slow
def test_whatever_header_is_accepted_nibabel_reads_as_the_same_image(tmp_path: Path) -> None:
    """Random damage to a header: it is refused, or both readers agree on grid and voxels."""
    chance = random.Random(5)  # noqa: S311
    voxels = np.random.default_rng(5).normal(100, 15, (8, 9, 10)).astype(np.float32)
    path = tmp_path / "image.nii"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    sound = path.read_bytes()
    codes = {
        "h": [0, 1, -1, 2, 3, 4, 8, 16, 64, 256, 512, 768, 1024, 32767, -32768],
        "f": [0.0, 1.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30, 352.0, 368.0, 3.0],
        "i": [0, 1, 16, 32, 7, -1, 2**31 - 1],
    }
    accepted = 0
    for _ in range(1500):
        content = bytearray(sound)
        for _ in range(chance.choice([1, 1, 2])):
            code = chance.choice(list(codes))
            size = struct.calcsize(code)
            offset = chance.randrange(0, 352 - size, size)
            struct.pack_into(f"<{code}", content, offset, chance.choice(codes[code]))
        path.write_bytes(content)
        try:
            header = read_header(path)
            mine = read_voxels(path, header)
        except FileFaults:
            continue
        accepted += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nibabel.load(path)
            theirs = np.asarray(image.dataobj, np.float32)
        assert header.shape == image.shape
        assert np.allclose(header.affine, image.affine, atol=1e-3)
        assert np.allclose(mine, theirs, rtol=1e-4, equal_nan=True)
    assert 500 < accepted < 1500
