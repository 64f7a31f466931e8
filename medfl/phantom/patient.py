"""Synthetic patients: brain MRI with tumours that belong to nobody.

They serve as demo hospitals and as the public data that a network may be trained on before it sees
a patient. Every patient follows from one seed; nothing is copied from any person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medfl.config.site import Modality
from medfl.config.synthetic import Variety
from medfl.durable import written_aside
from medfl.errors import DataError
from medfl.phantom.anatomy import build_head
from medfl.phantom.coverage import field_of_view
from medfl.phantom.grid import FloatArray, place_head
from medfl.phantom.lesion import grow_lesion, plan_lesion
from medfl.phantom.scanner import Contrast, ScannerLook, acquire, hospital_looks, public_look

__all__ = [
    "Contrast",
    "PhantomPatient",
    "ScannerLook",
    "hospital_looks",
    "make_patient",
    "public_look",
    "write_hospital",
]

MIN_SIZE = 8
# BraTS 2021 file names of the modalities.
SUFFIXES: Mapping[Modality, str] = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}


@dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """One synthetic patient.

    Attributes:
        images: float32 (D, H, W) per modality; axes are right, anterior, superior.
        labels: uint8 (D, H, W): 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing tumour.
        spacing: Millimetres per voxel.
    """

    images: Mapping[Modality, FloatArray]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]


def make_patient(
    *,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    look: ScannerLook,
    skull_stripped: bool,
    variety: Variety = "narrow",
    seed: int,
) -> PhantomPatient:
    """Draw one patient; the same arguments give the same patient.

    Args:
        shape: Voxels along right, anterior, superior; at least 8 each.
        spacing: Millimetres per voxel; thick slices are along the third axis.
        look: The scanner.
        skull_stripped: Brain on a background of exactly 0, rather than the whole head.
        variety: Of the tumours.
        seed: Non-negative; chooses anatomy, tumour and noise.

    Raises:
        ValueError: If shape or spacing is out of range.
    """
    if len(shape) != 3 or min(shape) < MIN_SIZE:
        raise ValueError(f"expected a shape of three sizes >= {MIN_SIZE}, found {shape}")
    if len(spacing) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"expected a spacing of three lengths > 0 mm, found {spacing}")
    rng = np.random.default_rng(seed)
    grid = place_head(shape=shape, spacing=spacing, whole_head=not skull_stripped, rng=rng)
    plan = plan_lesion(rng, variety=variety)
    head = build_head(grid, push=plan.push, rng=rng)
    lesion = grow_lesion(grid, head, plan, rng=rng)
    images = acquire(
        grid=grid,
        head=head,
        lesion=lesion,
        look=look,
        spacing=spacing,
        skull_stripped=skull_stripped,
        rng=rng,
    )
    seen = field_of_view(grid, lesion.labels > 0, cut=look.cut, rng=rng)
    return PhantomPatient(
        images={modality: np.where(seen, image, 0) for modality, image in images.items()},
        labels=np.where(seen, lesion.labels, 0),
        spacing=spacing,
    )


def write_hospital(
    out: Path,
    *,
    patients: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    look: ScannerLook,
    skull_stripped: bool,
    variety: Variety = "narrow",
    seed: int,
    first_number: int,
    on_patient: Callable[[int], None],
) -> None:
    """Write a cohort in the folder layout of BraTS 2021.

    Args:
        out: Root of the cohort; made if missing.
        patients: How many.
        shape: As for `make_patient`.
        spacing: As for `make_patient`.
        look: The hospital's scanner.
        skull_stripped: As for `make_patient`.
        variety: As for `make_patient`.
        seed: Of the hospital; a patient's own seed follows from it and the patient's number.
        first_number: Number of the first patient's folder.
        on_patient: Called after each patient with how many are written.

    Raises:
        DataError: If a patient's folder exists: it might be a real patient's.
    """
    for number in range(first_number, first_number + patients):
        patient = make_patient(
            shape=shape,
            spacing=spacing,
            look=look,
            skull_stripped=skull_stripped,
            variety=variety,
            seed=_patient_seed(seed, number),
        )
        _write_patient(patient, out, name=f"BraTS2021_{number:05d}")
        on_patient(number - first_number + 1)


def _patient_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def _write_patient(patient: PhantomPatient, out: Path, *, name: str) -> None:
    folder = out / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise DataError(f"expected no folder {folder} yet, found one") from None
    for modality, image in patient.images.items():
        stored = np.clip(np.rint(image), 0, np.iinfo(np.int16).max).astype(np.int16)
        _write_volume(stored, folder / f"{name}_{SUFFIXES[modality]}.nii.gz", patient.spacing)
    _write_volume(patient.labels, folder / f"{name}_seg.nii.gz", patient.spacing)


def _write_volume(
    volume: NDArray[np.int16] | NDArray[np.uint8], path: Path, spacing: tuple[float, ...]
) -> None:
    affine = np.diag([*spacing, 1.0])
    # The middle of the field of view is the origin, as in a scanner.
    affine[:3, 3] = -(np.array(volume.shape) - 1) / 2 * spacing
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    with written_aside(path) as draft:
        nib.save(image, draft)
