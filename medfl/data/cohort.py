"""`Cohort`: the patients of one site, and nothing about what is done with them.

The patient is the unit everywhere: all cases (imaging timepoints) of one person belong to one
`Patient`, whatever the folders look like.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medfl.config.site import LabelScheme, Modality


@dataclass(frozen=True, kw_only=True)
class Case:
    """One imaging timepoint.

    Attributes:
        case_id: Its name at the site.
        images: Modality -> file.
        mask: The mask where there is one.
        channels: Modality -> its volume, where one 4-D file holds several modalities.
        volumes: Volumes of such a file; 1 where every modality has a file.
        others: Further images of the case, which were not chosen.
        mask_path: Where its layout would have its mask, below some root.
    """

    case_id: str
    images: Mapping[Modality, Path]
    mask: Path | None
    channels: Mapping[Modality, int] = field(default_factory=dict)
    volumes: int = 1
    others: tuple[Path, ...] = ()
    mask_path: Path = Path()


@dataclass(frozen=True, kw_only=True)
class Patient:
    """The privacy unit: one person with all of their cases."""

    patient_id: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients in ascending order of their id, written in one label scheme."""

    patients: tuple[Patient, ...]
    label_scheme: LabelScheme


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training and held-out patients, disjoint."""

    training: tuple[Patient, ...]
    held_out: tuple[Patient, ...]


def pseudonym(patient_id: str, *, key: bytes) -> str:
    """The name under which a patient appears in logs and tables: 16 hexadecimal digits of an HMAC.

    Args:
        patient_id: The site's own identifier.
        key: Secret of the site; without it the identifier cannot be guessed and checked.
    """
    return hmac.new(key, patient_id.encode(), hashlib.sha256).hexdigest()[:16]


def split(cohort: Cohort, *, held_out: float, key: bytes) -> Split:
    """Choose the held-out patients by a keyed hash of their id, never by outcome.

    Args:
        cohort: All patients.
        held_out: Fraction of patients to hold out, in [0, 1); rounded to whole patients.
        key: Key of the hash.

    Returns:
        The split; both parts in ascending order of the patient id.
    """
    ranked = sorted(cohort.patients, key=lambda patient: pseudonym(patient.patient_id, key=key))
    count = round(held_out * len(ranked))
    chosen = {patient.patient_id for patient in ranked[:count]}
    return Split(
        training=tuple(p for p in cohort.patients if p.patient_id not in chosen),
        held_out=tuple(p for p in cohort.patients if p.patient_id in chosen),
    )
