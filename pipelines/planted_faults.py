"""Faults of one case, each made from a sound one, so that the preflight can be shown to find it.

Every function gets the folder of a case in the layout of BraTS 2021, whatever its size, and damages
one of its files. The tests say what has to be found for each; `data_cost.py` plants all of them in
a large cohort.
"""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]

Damage = Callable[[Path], None]
"""Changes the files of a case, given its folder."""

ENDINGS = ("t1", "t1ce", "t2", "flair", "seg")
"""What the files of a case end in, the mask last."""

_BOMB_BYTES = 16 * 2**20

# Offsets of NIfTI-1 header fields, in bytes.
_DIM, _DATATYPE, _PIXDIM, _VOX_OFFSET, _SLOPE = 40, 70, 76, 108, 112
_UNITS, _QFORM, _SFORM, _QUATERN_D, _QOFFSET = 123, 252, 254, 264, 268
_SROW, _MAGIC = 280, 344

_COMPLEX, _UNDEFINED = 32, 999  # data types


def image_of(case: Path, ending: str) -> Path:
    """Path of one file of a case."""
    return case / f"{case.name}_{ending}.nii.gz"


def _fields(*fields: tuple[int, str, tuple[float | bytes, ...]], ending: str = "t2") -> Damage:
    """Other values in header fields: offset, format, values."""

    def damage(case: Path) -> None:
        path = image_of(case, ending)
        content = bytearray(gzip.decompress(path.read_bytes()))
        for offset, code, values in fields:
            struct.pack_into(f"<{code}", content, offset, *values)
        path.write_bytes(gzip.compress(content, mtime=0))

    return damage


def _field(offset: int, code: str, *values: float | bytes) -> Damage:
    return _fields((offset, code, values))


def _bytes(change: Callable[[bytes], bytes], ending: str = "t1") -> Damage:
    """Another content of a file, made from its own."""

    def damage(case: Path) -> None:
        path = image_of(case, ending)
        path.write_bytes(change(path.read_bytes()))

    return damage


def _voxels(change: Callable[[NDArray[Any]], NDArray[Any]], ending: str = "t1") -> Damage:
    """Other voxels under the same transform."""

    def damage(case: Path) -> None:
        path = image_of(case, ending)
        image = nibabel.load(path)
        voxels = change(np.asarray(image.dataobj))
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)

    return damage


def _mask(value: float) -> Damage:
    """One value in every voxel of the mask that has a tumour."""
    return _voxels(lambda old: np.where(old > 0, np.float32(value), np.float32(0)), "seg")


def _with_first(value: float, dtype: type[np.floating[Any]] = np.float32) -> Damage:
    """One value in one voxel of an image."""

    def change(old: NDArray[Any]) -> NDArray[Any]:
        new = old.astype(dtype)
        new[0, 0, 0] = value
        return new

    return _voxels(change)


def _transformed(ending: str, change: Callable[[Affine], Affine]) -> Damage:
    def damage(case: Path) -> None:
        path = image_of(case, ending)
        image = nibabel.load(path)
        moved = nibabel.Nifti1Image(np.asarray(image.dataobj), change(image.affine.copy()))
        nibabel.save(moved, path)

    return damage


def _moved(ending: str) -> Damage:
    def change(affine: Affine) -> Affine:
        affine[1, 3] += 4
        return affine

    return _transformed(ending, change)


def _turned(degrees: float) -> Callable[[Affine], Affine]:
    """Around the third axis, about the first voxel."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])

    def change(affine: Affine) -> Affine:
        affine[:3, :3] = turn @ affine[:3, :3]
        return affine

    return change


def _scaled(factor: float) -> Callable[[Affine], Affine]:
    def change(affine: Affine) -> Affine:
        affine[:3, :3] *= factor
        return affine

    return change


def _whole_brain(case: Path) -> None:
    """What skull stripping leaves, in place of the tumour."""
    image = nibabel.load(image_of(case, "t2"))
    head = np.asarray(image.dataobj)
    mask = (head > head.min()).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), image_of(case, "seg"))


def _missing(ending: str) -> Damage:
    return lambda case: image_of(case, ending).unlink()


def _copied(ending: str, name: str) -> Damage:
    """The same file under a second name."""

    def damage(case: Path) -> None:
        shutil.copy(image_of(case, ending), case / f"{case.name}_{name}")

    return damage


def _renamed(ending: str, name: str) -> Damage:
    """Another name, in which ``{}`` is the case's."""

    def damage(case: Path) -> None:
        image_of(case, ending).rename(case / name.format(case.name))

    return damage


def _in_all_files(damage_of: Callable[[str], Damage]) -> Damage:
    """The same damage in every file of a case, which thus still fit each other."""

    def damage(case: Path) -> None:
        for ending in ENDINGS:
            damage_of(ending)(case)

    return damage


def _in_place_of(ending: str, make: Callable[[Path], object]) -> Damage:
    """Something else where a file should be."""

    def damage(case: Path) -> None:
        path = image_of(case, ending)
        path.unlink()
        make(path)

    return damage


def _uncompressed(case: Path) -> None:
    path = image_of(case, "t1")
    content = gzip.decompress(path.read_bytes())
    path.unlink()
    path.with_suffix("").write_bytes(content[:-1])


def _another_modality(case: Path) -> None:
    shutil.copy(image_of(case, "flair"), image_of(case, "t1"))


def _another_patient(case: Path) -> None:
    """One image of the last patient of the cohort."""
    other = max(folder for folder in case.parent.iterdir() if folder != case)
    shutil.copy(image_of(other, "t1ce"), image_of(case, "t1ce"))


def _centred(old: NDArray[Any]) -> NDArray[Any]:
    """What a z-score over the head leaves behind: air at 0 in the middle of the scale."""
    # Also where the scan has no air.
    head = (old > 0) & (np.arange(old.size).reshape(old.shape) % 5 > 1)
    return np.where(head, old - old[head].mean(), 0).astype(np.float32)


def _outside(old: NDArray[Any]) -> NDArray[Any]:
    new = np.zeros_like(old)
    new[:2, :2] = 1
    return new


def _without_corner(old: NDArray[Any]) -> NDArray[Any]:
    new = old.copy()
    new[:2, :2] = 0
    return new


def _tumour_in_air(case: Path) -> None:
    """A tumour in a corner where every image is empty."""
    for ending in ENDINGS[:-1]:
        _voxels(_without_corner, ending)(case)
    _voxels(_outside, "seg")(case)


def _flipped(old: bytes) -> bytes:
    new = bytearray(old)
    new[len(new) // 2] ^= 1
    return bytes(new)


_DIAGONAL = (2000.0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0)
_PAGE = b"<!DOCTYPE html><html>Please log in</html>"

CASE_FAULTS: Mapping[str, Damage] = MappingProxyType(
    {
        # What nibabel accepts in silence.
        "four dimensions": _fields((_DIM, "h", (4,)), (_DIM + 8, "h", (2,))),
        "two dimensions": _field(_DIM, "h", 2),
        "zero dimension": _field(_DIM + 2, "h", 0),
        "negative dimension": _field(_DIM + 4, "h", -5),
        "absurd size": _field(_DIM + 2, "3h", 32767, 32767, 32767),
        "zero pixdim": _field(_PIXDIM + 4, "f", 0.0),
        "negative pixdim": _field(_PIXDIM + 4, "f", -2.0),
        "NaN pixdim": _field(_PIXDIM + 8, "f", float("nan")),
        "NaN sform": _field(_SROW, "f", float("nan")),
        "infinite sform": _field(_SROW + 12, "f", float("inf")),
        "all-zero sform": _field(_SROW, "12f", *[0.0] * 12),
        "flat sform": _field(_SROW, "4f", 0.0, 0.0, 0.0, 5.0),
        "sform far away": _field(_SROW + 12, "f", 1e30),
        "transform of an unknown kind": _field(_SFORM, "h", 99),
        "infinite slope": _field(_SLOPE, "f", float("inf")),
        "infinite intercept": _field(_SLOPE, "2f", 2.0, float("-inf")),
        "voxels before the header's end": _field(_VOX_OFFSET, "f", 0.0),
        "voxels far behind the header": _field(_VOX_OFFSET, "f", 1e9),
        "complex voxels": _field(_DATATYPE, "h", _COMPLEX),
        "undefined data type": _field(_DATATYPE, "h", _UNDEFINED),
        "half of a pair": _field(_MAGIC, "4s", b"ni1\0"),
        "no magic word": _field(_MAGIC, "4s", b"\0\0\0\0"),
        "image of many metres": _fields((_PIXDIM + 4, "f", (2000.0,)), (_SROW, "12f", _DIAGONAL)),
        "tiny voxels": _field(_PIXDIM + 4, "3f", 0.02, 0.02, 0.02),
        "huge voxels": _field(_PIXDIM + 12, "f", 45.0),
        "two voxel sizes": _field(_PIXDIM + 12, "f", 3.5),
        "metres": _field(_UNITS, "b", 1),
        "micrometres": _field(_UNITS, "b", 3),
        "an unknown unit": _field(_UNITS, "b", 5),
        "sform and qform apart": _fields((_QOFFSET, "f", (40.0,)), (_QFORM, "h", (1,))),
        "sform and qform turned": _fields(
            (_QUATERN_D, "f", (np.sin(np.radians(29 / 2)),)), (_QFORM, "h", (1,))
        ),
        "sheared transform": _in_all_files(
            lambda ending: _fields((_SROW + 4, "f", (0.2,)), ending=ending)
        ),
        "no orientation": _in_all_files(lambda ending: _fields((_SFORM, "h", (0,)), ending=ending)),
        "few slices": _in_all_files(lambda ending: _voxels(lambda old: old[:, :, 4:9], ending)),
        # Damaged files and bombs.
        "empty file": _bytes(lambda _: b""),
        "empty gzip file": _bytes(lambda _: gzip.compress(b"", mtime=0)),
        "web page": _bytes(lambda _: _PAGE),
        "web page in gzip": _bytes(lambda _: gzip.compress(_PAGE, mtime=0)),
        "plain text": _bytes(lambda _: b"plain text"),
        "other data in gzip": _bytes(lambda _: gzip.compress(bytes(400), mtime=0)),
        "cut off in the header": _bytes(lambda old: old[:200]),
        "cut off in the voxels": _bytes(lambda old: old[:-2000]),
        "cut off by a byte": _bytes(lambda old: old[:-1]),
        "flipped bit": _bytes(_flipped),
        "fewer voxels than announced": _bytes(
            lambda old: gzip.compress(gzip.decompress(old)[:-100], mtime=0)
        ),
        "uncompressed and cut off": _uncompressed,
        "uncompressed under .gz": _bytes(gzip.decompress),
        "compressed under .nii": _renamed("t1", "{}_t1.nii"),
        "gzip bomb": _bytes(
            lambda old: gzip.compress(gzip.decompress(old) + bytes(_BOMB_BYTES), 1, mtime=0)
        ),
        # Voxels and geometry.
        "NaN voxel": _with_first(float("nan")),
        "infinite voxel": _with_first(float("inf")),
        "voxel beyond single precision": _with_first(1e300, np.float64),
        "constant channel": _voxels(lambda old: np.full(old.shape, 7, np.int16)),
        "empty channel": _voxels(lambda old: np.zeros(old.shape, np.int16)),
        "centred image": _voxels(_centred),
        "another shape": _voxels(lambda old: old[:, :, :-1], "flair"),
        "another transform": _moved("flair"),
        "turned by half a degree": _transformed("flair", _turned(0.5)),
        "voxels larger by a hair": _transformed("flair", _scaled(1.01)),
        "mask of another shape": _voxels(lambda old: old[:, :, :-1], "seg"),
        "mask with another transform": _moved("seg"),
        "mask turned by half a degree": _transformed("seg", _turned(0.5)),
        # Labels.
        "label of another year": _mask(3),
        "label between two": _mask(0.5),
        "negative label": _mask(-1),
        "label beyond a byte": _mask(1000),
        "NaN label": _mask(float("nan")),
        "empty mask": _mask(0),
        "mask outside the head": _tumour_in_air,
        "mask of the whole brain": _whole_brain,
        # Names and identity.
        "missing modality": _missing("flair"),
        "missing mask": _missing("seg"),
        "doubled modality": _copied("t2", "t2.nii"),
        "doubled by capital letters": _copied("t2", "T2.NII.GZ"),
        "doubled mask": _copied("seg", "seg.nii"),
        "only a hidden copy": _renamed("t2", "._{}_t2.nii.gz"),
        "name of another case": _renamed("t2", "BraTS2021_99999_t2.nii.gz"),
        "dangling link": _in_place_of("t2", lambda path: path.symlink_to("away.nii.gz")),
        "link to itself": _in_place_of("t2", lambda path: path.symlink_to(path.name)),
        "folder in place of a file": _in_place_of("t2", Path.mkdir),
        "one modality as another": _another_modality,
        "one image of two patients": _another_patient,
    }
)
