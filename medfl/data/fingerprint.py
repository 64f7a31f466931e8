"""Fingerprints of images: what a scan is known by, whatever its file is called or how it is stored.

A patient must not get a second privacy budget under another name. The fingerprint of one volume is
the SHA-256 of a canonical form of its voxels, in which their place does not matter: the distinct
real values in ascending order, as little-endian float32, then how often each occurs, as
little-endian uint64. Real values are the stored ones after the file's slope and intercept, computed
in float64 and rounded to float32; what is not finite counts as 0, and -0 as 0. The most frequent
value is left out, since it is nearly always the background.

So names, header bytes, the affine, the order and direction of axes, the number type, slope and
intercept that give the same values, compression, and padding with the background or cropping of
it change nothing, nor does it matter whether volumes lie in one 4-D file or in several files. A
volume with fewer than `FEWEST_VALUES` values besides the background identifies nobody, and has no
fingerprint.

What this cannot see: resampling, smoothing, rescaling or re-quantising the intensities, cropping
through tissue, or changing a single voxel gives another fingerprint. Under a new patient id such a
copy counts as a new patient.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfl.config.site import SiteData
from medfl.data.cache import TensorCache
from medfl.data.cohort import Patient
from medfl.data.layouts.rules import rule_of
from medfl.data.layouts.survey import survey_cohort
from medfl.data.nifti.headers import FileFaults, Header, read_header, read_voxels
from medfl.errors import DataError

FEWEST_VALUES = 16
"""Distinct values besides the background below which an image identifies nobody."""

_KIND = "fingerprints 1"  # another number where the canonical form changes
_REMEMBERED = re.compile(r"(?:[0-9a-f]{64}\n)*end\n")
_WIDEST_COUNT = 2**17


@dataclass(frozen=True, kw_only=True)
class _Image:
    path: Path
    volumes: int


def patient_fingerprints(
    patients: Iterable[Patient], *, data: SiteData, cache: TensorCache, threads: int
) -> dict[str, frozenset[str]]:
    """Fingerprints of every image of every case of each patient.

    Images that the site does not use count too, where the layout knows them: other modalities,
    other runs, cases without a mask. Another site file on the same folders could use those alone.

    Args:
        patients: The patients; those without an image that identifies them get an empty set.
        data: Where their images are.
        cache: Remembers the fingerprints of files that did not change.
        threads: Images that are read at the same time.

    Returns:
        Patient id -> fingerprints, hexadecimal.

    Raises:
        DataError: If an image that the site uses cannot be read.
    """
    known = {patient.patient_id: patient for patient in patients}
    used = {name: _images(patient) for name, patient in known.items()}
    others = _unused_images(known.keys(), data=data)
    work = [(name, image, True) for name, images in used.items() for image in images]
    work += [
        (name, image, False) for name, images in others.items() for image in images - used[name]
    ]

    def read(entry: tuple[str, _Image, bool]) -> tuple[str, ...]:
        _, image, needed = entry
        try:
            return file_fingerprints(image.path, volumes=image.volumes, cache=cache)
        except DataError:
            if needed:
                raise
            return ()  # what cannot be read cannot be trained on, here or elsewhere

    found: dict[str, set[str]] = {name: set() for name in known}
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            for (name, _, _), fingerprints in zip(work, pool.map(read, work), strict=True):
                found[name].update(fingerprints)
        finally:
            pool.shutdown(cancel_futures=True)
    return {name: frozenset(fingerprints) for name, fingerprints in found.items()}


def file_fingerprints(path: Path, *, volumes: int, cache: TensorCache) -> tuple[str, ...]:
    """The fingerprints of one file's volumes; remembered until the file changes.

    Args:
        path: A NIfTI file.
        volumes: Images in it.
        cache: Where they are remembered.

    Returns:
        Hexadecimal text, one a volume that identifies somebody.

    Raises:
        DataError: If the file is no sound image.
    """

    def compute() -> str:
        return "".join(f"{each}\n" for each in _fingerprints(path, volumes=volumes)) + "end\n"

    try:
        text = cache.remembered(
            path,
            kind=f"{_KIND} of {volumes}",
            compute=compute,
            # A file that a power failure left empty must not read as an image without any.
            intact=lambda found: _REMEMBERED.fullmatch(found) is not None,
        )
    except FileFaults as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(
            f"{path}: expected a readable file, found: {error.strerror or type(error).__name__}."
        ) from None
    return tuple(text.splitlines()[:-1])


def fingerprint(voxels: NDArray[np.float32], *, slope: float = 1.0, intercept: float = 0.0) -> str:
    """The fingerprint of one volume.

    Args:
        voxels: Stored values, any shape.
        slope: Factor from stored to real values.
        intercept: Added after the factor.

    Returns:
        Hexadecimal text; empty where there are too few distinct values.
    """
    stored, occurrences = _distinct(voxels)
    with np.errstate(over="ignore", invalid="ignore"):
        real = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    real = np.where(np.isfinite(real), real, np.float32(0)) + np.float32(0)
    # A slope may reverse the order, and rounding may make two values one.
    values, place = np.unique(real, return_inverse=True)
    counts = np.zeros(len(values), dtype=np.uint64)
    np.add.at(counts, place, occurrences.astype(np.uint64))
    if len(values) <= FEWEST_VALUES:
        return ""
    background = int(counts.argmax())
    content = hashlib.sha256(np.delete(values, background).astype("<f4").tobytes())
    content.update(np.delete(counts, background).astype("<u8").tobytes())
    return content.hexdigest()


def _fingerprints(path: Path, *, volumes: int) -> list[str]:
    header = read_header(path, volumes=volumes)
    stored = read_voxels(path, _unscaled(header))
    parts = [stored] if volumes == 1 else [stored[..., number] for number in range(volumes)]
    found = (fingerprint(part, slope=header.slope, intercept=header.intercept) for part in parts)
    return [each for each in found if each]


def _unscaled(header: Header) -> Header:
    # Scaled here in float64, as converters do it, and not in training's float32.
    return replace(header, slope=1.0, intercept=0.0)


def _distinct(voxels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distinct values in ascending order, and how often each occurs."""
    flat = voxels.ravel(order="K")
    inside = flat[flat != 0]  # most of a volume is air, and sorting it is most of the work
    zeros = flat.size - inside.size
    values, counts = _counted(inside) if _are_small_integers(inside) else _sorted(inside)
    if zeros:
        place = int(np.searchsorted(values, 0))
        values, counts = np.insert(values, place, 0), np.insert(counts, place, zeros)
    return values, counts


def _are_small_integers(values: NDArray[np.float32]) -> bool:
    if not values.size:
        return False
    low, high = float(values.min()), float(values.max())  # NaN fails the comparison
    return high - low < _WIDEST_COUNT and np.array_equal(values, np.rint(values))


def _counted(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    low = int(values.min())
    counts = np.bincount(values.astype(np.int64) - low)
    present = np.flatnonzero(counts)
    return (present + low).astype(np.float32), counts[present]


def _sorted(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    distinct, counts = np.unique(values, return_counts=True)
    return distinct, counts


def _images(patient: Patient, *, others: bool = False) -> frozenset[_Image]:
    return frozenset(
        _Image(path=path, volumes=case.volumes)
        for case in patient.cases
        for path in (*case.images.values(), *(case.others if others else ()))
    )


def _unused_images(names: Iterable[str], *, data: SiteData) -> Mapping[str, frozenset[_Image]]:
    """Images of these patients that the site does not use.

    Of another modality, of a case without a mask, or of a run that was not chosen.
    """
    found: dict[str, frozenset[_Image]] = dict.fromkeys(names, frozenset())
    for modality in rule_of(data).modalities:
        survey = survey_cohort(
            data.model_copy(update={"modalities": (modality,)}), masks_required=False
        )
        for patient in survey.patients:
            if patient.patient_id in found:
                found[patient.patient_id] |= _images(patient, others=True)
    return found
