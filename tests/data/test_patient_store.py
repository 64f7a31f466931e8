"""Prepared cases from disk, memory or files: always the same, and as they were verified."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medfl.data import patient_store
from medfl.data.cohort import Case, Patient
from medfl.data.patient_store import PatientStore
from medfl.data.transforms import Frame, PreparedCase, prepare_case
from medfl.errors import DataError

REGIONS = ("TC", "WT", "ET")


def frame(**changes: Any) -> Frame:
    values: dict[str, Any] = {
        "modalities": ("t1n", "t1c", "t2w", "t2f"),
        "regions": REGIONS,
        "spacing": "native",
        "label_scheme": "brats",
    }
    return Frame(**(values | changes))


@pytest.fixture
def patients(hospital: Any) -> tuple[Patient, ...]:
    names = ["BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002"]
    for number, name in enumerate(names):
        hospital.add(name, seed=number)
    first, second, third = (hospital.case(name) for name in names)
    return (
        Patient(patient_id="one", cases=(first,)),
        Patient(patient_id="two", cases=(second, third)),
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that were read from their source files, in order."""
    names: list[str] = []
    real = patient_store.prepare_case

    def prepare(case: Case, frame: Frame) -> PreparedCase:
        names.append(case.case_id)
        return real(case, frame)

    monkeypatch.setattr(patient_store, "prepare_case", prepare)
    return names


def same(one: PreparedCase, other: PreparedCase) -> bool:
    return one.spacing_mm == other.spacing_mm and all(
        torch.equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("image_CDHW", "regions_RDHW", "foreground", "background")
    )


def test_a_patient_has_all_of_their_cases(patients: Any, tmp_path: Path) -> None:
    store = PatientStore(patients, frame(), tmp_path / "cache")
    assert len(store) == 2
    assert [len(store.prepared(index)) for index in range(2)] == [1, 2]


def test_stored_cases_equal_prepared_ones_but_for_half_precision(
    patients: Any, tmp_path: Path
) -> None:
    (stored,) = PatientStore(patients, frame(), tmp_path / "cache").prepared(0)
    fresh = prepare_case(patients[0].cases[0], frame())
    assert torch.equal(stored.image_CDHW, fresh.image_CDHW.half().float())
    assert torch.allclose(stored.image_CDHW, fresh.image_CDHW, atol=2e-3)
    for name in ("regions_RDHW", "foreground", "background"):
        assert torch.equal(getattr(stored, name), getattr(fresh, name))
    assert stored.spacing_mm == fresh.spacing_mm


def test_the_second_store_reads_the_cache_and_gets_the_same(
    patients: Any, tmp_path: Path, reads: list[str]
) -> None:
    first = PatientStore(patients, frame(), tmp_path / "cache").prepared(1)
    second = PatientStore(patients, frame(), tmp_path / "cache").prepared(1)
    assert len(reads) == 2
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_memory_keeps_the_cases_used_last_within_its_bound(
    patients: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [
        Patient(patient_id=case.case_id, cases=(case,))
        for patient in patients
        for case in patient.cases
    ]
    size = PatientStore(alone, frame(), tmp_path / "cache").prepared(0)[0].nbytes
    store = PatientStore(alone, frame(), tmp_path / "cache", memory_bytes=int(2.5 * size))
    files: list[str] = []
    real = patient_store.TensorCache.read

    def read(cache: patient_store.TensorCache, key: str) -> Any:
        files.append(key)
        return real(cache, key)

    monkeypatch.setattr(patient_store.TensorCache, "read", read)
    for index, from_disk in [(0, 1), (1, 1), (0, 0), (2, 1), (0, 0), (2, 0), (1, 1), (0, 1)]:
        before = len(files)
        store.prepared(index)
        assert len(files) - before == from_disk


def test_a_store_without_memory_still_serves(patients: Any, tmp_path: Path) -> None:
    store = PatientStore(patients, frame(), tmp_path / "cache", memory_bytes=0)
    assert same(store.prepared(0)[0], store.prepared(0)[0])


def test_a_changed_file_is_read_again_and_a_touched_or_moved_one_is_not(
    patients: Any, tmp_path: Path, reads: list[str]
) -> None:
    PatientStore(patients, frame(), tmp_path / "cache").prepared(0)
    case = patients[0].cases[0]
    os.utime(case.mask, ns=(1, 1))
    moved = case.mask.with_name("moved.nii.gz")
    case.mask.rename(moved)
    elsewhere = [Patient(patient_id="x", cases=(replace(case, mask=moved),))]
    store = PatientStore(elsewhere, frame(), tmp_path / "cache")
    assert store.prepared(0)[0].regions_RDHW.any()
    assert len(reads) == 1
    image = nibabel.load(moved)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), moved)
    assert not store.prepared(0)[0].regions_RDHW.any()
    assert len(reads) == 2


@pytest.mark.parametrize(
    "changes",
    [{"spacing": (3.0, 3.0, 3.0)}, {"regions": ("WT",)}, {"modalities": ("t1c", "t2f")}],
)
def test_frames_do_not_share_entries(
    patients: Any, tmp_path: Path, reads: list[str], changes: dict[str, Any]
) -> None:
    PatientStore(patients, frame(), tmp_path / "cache").prepared(0)
    (case,) = PatientStore(patients, frame(**changes), tmp_path / "cache").prepared(0)
    assert len(reads) == 2
    assert same(case, PatientStore(patients, frame(**changes), tmp_path / "other").prepared(0)[0])


def test_a_damaged_entry_is_rebuilt(patients: Any, tmp_path: Path, reads: list[str]) -> None:
    (before,) = PatientStore(patients, frame(), tmp_path / "cache").prepared(0)
    (entry,) = (tmp_path / "cache").glob("*.case")
    entry.write_bytes(entry.read_bytes()[:5000])
    (after,) = PatientStore(patients, frame(), tmp_path / "cache").prepared(0)
    assert same(before, after)
    PatientStore(patients, frame(), tmp_path / "cache").prepared(0)
    assert len(reads) == 2


def test_entries_name_no_patient(patients: Any, tmp_path: Path) -> None:
    store = PatientStore(patients, frame(), tmp_path / "cache")
    store.prepared(0)
    store.prepared(1)
    for path in (tmp_path / "cache").iterdir():
        assert len(path.stem) == 64
        assert b"BraTS" not in path.name.encode() + path.read_bytes()


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_cached(
    patients: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = patient_store.prepare_case
    mask = patients[0].cases[0].mask

    def prepare(case: Case, frame: Frame) -> PreparedCase:
        image = nibabel.load(mask)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), mask)
        return real(case, frame)

    store = PatientStore(patients, frame(), tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(patient_store, "prepare_case", prepare)
        with pytest.raises(DataError, match="changed while it was read"):
            store.prepared(0)
    assert list((tmp_path / "cache").glob("*.case")) == []
    assert not store.prepared(0)[0].regions_RDHW.any()


def test_a_vanished_file_is_refused(patients: Any, tmp_path: Path) -> None:
    patients[0].cases[0].mask.unlink()
    with pytest.raises(DataError, match="expected readable files"):
        PatientStore(patients, frame(), tmp_path / "cache").prepared(0)


def emptied(mask: Path) -> None:
    image = nibabel.load(mask)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), mask)


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_a_verified_patient_is_served_as_verified_whatever_happens_to_the_file(
    patients: Any, tmp_path: Path, memory_bytes: int
) -> None:
    store = PatientStore(patients, frame(), tmp_path / "cache", memory_bytes=memory_bytes)
    store.verify()
    before = store.prepared(0)[0]
    emptied(patients[0].cases[0].mask)
    assert same(store.prepared(0)[0], before)
    store.verify()
    assert not store.prepared(0)[0].regions_RDHW.any()


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
@pytest.mark.parametrize("seen_before", [False, True])
def test_where_the_cache_has_no_room_a_changed_file_is_refused_whatever_memory_holds(
    patients: Any, tmp_path: Path, memory_bytes: int, seen_before: bool
) -> None:
    """Memory depends on who was drawn before, so it must not decide what is served."""
    store = PatientStore(
        patients, frame(), tmp_path / "cache", memory_bytes=memory_bytes, cache_bytes=1
    )
    store.verify()
    store.verify()  # the last one stored has made room by now
    if seen_before:
        store.prepared(0)
    emptied(patients[0].cases[0].mask)
    with pytest.raises(DataError, match="since it was verified"):
        store.prepared(0)


def test_nothing_is_stored_or_deleted_between_two_verifications(
    patients: Any, tmp_path: Path
) -> None:
    size = PatientStore(patients, frame(), tmp_path / "one")
    size.verify()
    one = next((tmp_path / "one").glob("*.case")).stat().st_size
    store = PatientStore(
        patients, frame(), tmp_path / "cache", memory_bytes=0, cache_bytes=int(1.5 * one)
    )
    store.verify()
    entries = sorted((tmp_path / "cache").iterdir())
    for index in (0, 1, 0):
        store.prepared(index)
    assert sorted((tmp_path / "cache").iterdir()) == entries


def test_who_was_known_is_stored_again_once_there_is_room(
    patients: Any, tmp_path: Path, reads: list[str]
) -> None:
    small = PatientStore(patients, frame(), tmp_path / "cache", cache_bytes=1)
    small.verify()
    assert len(reads) == 3
    small.verify()
    assert len(reads) == 3  # nothing fits, and nothing is prepared for nothing
    large = PatientStore(patients, frame(), tmp_path / "cache")
    large.verify()
    assert len(list((tmp_path / "cache").glob("*.case"))) == 3
    assert len(reads) > 3


def test_the_largest_patient_is_the_one_with_most_to_hold(patients: Any, tmp_path: Path) -> None:
    store = PatientStore(patients, frame(), tmp_path / "cache")
    store.verify()
    assert store.largest() == 1  # has two cases
    turned = PatientStore(patients[::-1], frame(), tmp_path / "cache", cache_bytes=1)
    turned.verify()
    assert turned.largest() == 0  # known, although there is no room for it
