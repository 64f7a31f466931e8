"""The split: disjoint, complete, keyed, and blind to everything but the patient's id."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.data.cohort import Case, Cohort, Patient, Split, pseudonym, split

KEY = b"k" * 32


def cohort_of(ids: list[str], *, cases: int = 1) -> Cohort:
    patients = tuple(
        Patient(
            patient_id=patient_id,
            cases=tuple(
                Case(case_id=f"{patient_id}_{n}", images={"t2f": Path("x")}, mask=None)
                for n in range(cases)
            ),
        )
        for patient_id in sorted(ids)
    )
    return Cohort(patients=patients, label_scheme="brats")


def ids_of(patients: tuple[Patient, ...]) -> list[str]:
    return [patient.patient_id for patient in patients]


@given(
    ids=st.lists(st.text("abc012_", min_size=1, max_size=8), unique=True, max_size=40),
    held_out=st.floats(0, 0.99),
    key=st.binary(min_size=1, max_size=40),
)
def test_every_patient_is_in_exactly_one_part_and_order_is_kept(
    ids: list[str], held_out: float, key: bytes
) -> None:
    parts = split(cohort_of(ids), held_out=held_out, key=key)
    assert sorted(ids_of(parts.training) + ids_of(parts.held_out)) == sorted(ids)
    assert ids_of(parts.training) == sorted(ids_of(parts.training))
    assert ids_of(parts.held_out) == sorted(ids_of(parts.held_out))
    assert len(parts.held_out) == round(held_out * len(ids))


def test_all_cases_of_a_patient_stay_on_one_side() -> None:
    parts = split(cohort_of([f"p{n}" for n in range(10)], cases=3), held_out=0.3, key=KEY)
    assert [len(patient.cases) for patient in parts.training + parts.held_out] == [3] * 10


def test_split_depends_on_key_and_id_only() -> None:
    ids = [f"patient-{n}" for n in range(40)]

    def held_out(cohort: Cohort, key: bytes) -> Split:
        return split(cohort, held_out=0.25, key=key)

    assert held_out(cohort_of(ids), KEY) == held_out(cohort_of(ids[::-1]), KEY)
    assert ids_of(held_out(cohort_of(ids), KEY).held_out) == ids_of(
        held_out(cohort_of(ids, cases=2), KEY).held_out
    )
    assert held_out(cohort_of(ids), KEY) != held_out(cohort_of(ids), b"another key")


def test_patients_who_join_later_move_nobody_from_held_out_to_training_wholesale() -> None:
    ids = [f"patient-{n}" for n in range(40)]
    before = set(ids_of(split(cohort_of(ids), held_out=0.25, key=KEY).held_out))
    after = set(ids_of(split(cohort_of([*ids, "late"]), held_out=0.25, key=KEY).held_out))
    assert len(before - after) <= 1


def test_pseudonym_is_an_hmac_of_the_id() -> None:
    # RFC 2104 written out, for a key that fills less than one block.
    block = KEY.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + b"BraTS2021_00000").digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()
    assert pseudonym("BraTS2021_00000", key=KEY) == outer[:16]


@pytest.mark.parametrize("other_key", [b"", b"l" * 32])
def test_pseudonym_cannot_be_recomputed_without_the_key(other_key: bytes) -> None:
    assert pseudonym("BraTS2021_00000", key=KEY) != pseudonym("BraTS2021_00000", key=other_key)
