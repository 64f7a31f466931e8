"""The TCGA-LGG collection of Buda et al. in its original TIFF slices, as NIfTI in the layout `lgg`.

A slice holds T1, T2-FLAIR and post-contrast T1 as red, green and blue; where a sequence lacked, its
authors put T2-FLAIR in its place (Buda, Saha, Mazurowski, Computers in Biology and Medicine
2019). The slices carry no spacing and no orientation: both are nominal here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from medfl.config.open_data_site import open_data_site
from medfl.durable import write_atomically, written_aside
from medfl.errors import DataError

SPACING_MM = (0.95, 0.95, 7.5)
"""Nominal voxel size along columns, rows and slices."""

HELD_OUT = 0.25

_FOLDER = r"(?P<patient>TCGA_(?P<site>[A-Za-z0-9]+)_[A-Za-z0-9]+)_\d{8}"
_CHANNELS = ("t1", "flair", "t1ce")
_MAX_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class ImportedPatient:
    """One patient that was written.

    Attributes:
        patient_id: As the collection names the person.
        site: Code of the hospital.
        replaced: Sequences that hold T2-FLAIR, since the hospital had none.
    """

    patient_id: str
    site: str
    replaced: tuple[str, ...]


def import_lgg(
    source: Path,
    out: Path,
    *,
    on_patient: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[ImportedPatient]:
    """Write every patient as ``OUT/<site>/<patient>/<patient>_{t1,flair,t1ce,seg}.nii.gz``.

    Each hospital also gets a site file, ``OUT/<site>.toml``, as open data.

    Args:
        source: The folder ``kaggle_3m``.
        out: A new or empty folder.
        on_patient: Called with (patients done, patients in all).

    Returns:
        The patients in ascending order.

    Raises:
        DataError: If a folder, slice or mask is not as expected, or `out` holds files.
    """
    if not source.is_dir():
        raise DataError(f"{source}: expected the folder kaggle_3m, found none.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, found files.")
    folders = _patient_folders(source)
    imported = []
    for done, (patient_id, folder) in enumerate(sorted(folders.items()), start=1):
        site = patient_id.split("_")[1]
        slices_KHWC, mask_KHW = _read(folder)
        target = out / site / patient_id
        target.mkdir(parents=True, exist_ok=True)
        for channel, name in enumerate(_CHANNELS):
            _write(target / f"{patient_id}_{name}.nii.gz", slices_KHWC[..., channel])
        _write(target / f"{patient_id}_seg.nii.gz", mask_KHW)
        flair = slices_KHWC[..., 1]
        replaced = tuple(
            name
            for channel, name in enumerate(_CHANNELS)
            if name != "flair" and np.array_equal(slices_KHWC[..., channel], flair)
        )
        imported.append(ImportedPatient(patient_id=patient_id, site=site, replaced=replaced))
        on_patient(done, len(folders))
    counts: dict[str, int] = {}
    for patient in imported:
        counts[patient.site] = counts.get(patient.site, 0) + 1
    _write_site_files(out, counts)
    return imported


def _patient_folders(source: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for folder in sorted(entry for entry in source.iterdir() if entry.is_dir()):
        match = re.fullmatch(_FOLDER, folder.name)
        if match is None:
            raise DataError(
                f"{folder}: expected a folder named TCGA_<site>_<id>_<date>, found {folder.name!r}."
            )
        if match["patient"] in folders:
            raise DataError(
                f"{folder}: expected one examination a patient, found "
                f"{folders[match['patient']].name} too."
            )
        folders[match["patient"]] = folder
    if not folders:
        raise DataError(f"{source}: expected folders named TCGA_<site>_<id>_<date>, found none.")
    return folders


def _read(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """uint8 slices (K, H, W, 3) and mask (K, H, W) with values 0 and 1."""
    numbers = sorted(
        int(match[1])
        for path in folder.glob("*.tif")
        if (match := re.fullmatch(rf"{folder.name}_(\d+)\.tif", path.name))
    )
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise DataError(
            f"{folder}: expected slices numbered from 1 without gaps, found "
            f"{f'{len(numbers)} up to {numbers[-1]}' if numbers else 'none'}."
        )
    slices = [_slice(folder / f"{folder.name}_{number}.tif", mode="RGB") for number in numbers]
    masks = [_slice(folder / f"{folder.name}_{number}_mask.tif", mode="L") for number in numbers]
    shape = slices[0].shape[:2]
    for number, (image, mask) in enumerate(zip(slices, masks, strict=True), start=1):
        for found in (image.shape[:2], mask.shape):
            if found != shape:
                raise DataError(
                    f"{folder}: expected {shape[0]} x {shape[1]} pixels in every slice and mask, "
                    f"found {found[0]} x {found[1]} in number {number}."
                )
    stacked = np.stack(masks)
    if not np.isin(stacked, (0, 255)).all():
        raise DataError(f"{folder}: expected 0 and 255 in the masks, found other values.")
    return np.stack(slices), (stacked > 0).astype(np.uint8)


def _slice(path: Path, *, mode: str) -> NDArray[np.uint8]:
    # By the library: the strips of these files are padded, which a plain reshape would not notice.
    try:
        with warnings.catch_warnings():
            # The library only warns of a damaged directory and of an absurd size.
            warnings.simplefilter("error")
            with Image.open(path, formats=["TIFF"]) as image:
                if image.mode != mode or max(image.size) > _MAX_SIDE:
                    raise DataError(
                        f"{path}: expected a TIFF image of mode {mode}, found {image.mode} of "
                        f"{image.size[0]} x {image.size[1]}."
                    )
                return np.asarray(image, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(
            f"{path}: expected a slice and a mask for each number, found none."
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Warning):
        raise DataError(f"{path}: expected a TIFF image, found a damaged file.") from None


def _write(path: Path, slices_KHW: NDArray[np.uint8]) -> None:
    # Columns, then rows from the bottom (towards anterior), then slices.
    voxels = np.ascontiguousarray(slices_KHW.transpose(2, 1, 0)[:, ::-1])
    image = nibabel.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0]))
    image.header.set_xyzt_units("mm")
    with written_aside(path) as draft:
        nibabel.save(image, draft)


def _write_site_files(out: Path, counts: Mapping[str, int]) -> None:
    for site, patients in counts.items():
        text = open_data_site(
            site,
            about="A hospital of the TCGA-LGG collection. Its images are public",
            root=site,
            layout="lgg",
            label_scheme="lgg",
            modalities=("t1n", "t1c", "t2f"),
            patients=patients,
            held_out=HELD_OUT if patients > 1 else 0.0,
        )
        write_atomically(out / f"{site}.toml", text.encode())
