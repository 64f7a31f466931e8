"""What can be wrong with a NIfTI header, each with the rule, what was found, and the fix.

nibabel accepts a zero dimension, a NaN transform or 32767^3 voxels without a word, and programs
differ in which of a header's two transforms and voxel sizes they believe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import nibabel
import numpy as np
from nibabel.nifti1 import xform_codes
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medfl.data.nifti.geometry import corners_apart, shear_degrees, voxel_sizes

MAX_VOXELS = 2**27
"""512 x 512 x 512; a BraTS scan has 8.9 million."""

_MAX_OFFSET = 2**20
_MIN_VOLUME = 1e-3  # of the transform's unit cell, as a part of the voxel's volume
# Beyond these, voxels are a mistake in the header rather than a scan.
_SMALLEST_MM, _LARGEST_MM = 0.1, 20.0
_FEWEST_SLICES = 8
_FORMS_APART_MM = 0.5
# From where an image is sheared for ITK, and so for SimpleITK, ITK-SNAP and nnU-Net.
_SHEAR_DEGREES = 0.01
# A head is smaller and nearer; resampling more than this would allocate without end or lose digits.
_MAX_EXTENT_MM = 1000.0
_FARTHEST_MM = 1e5
_FORM_CODES = frozenset(xform_codes.value_set("code"))
_UNKNOWN, _METRES, _MILLIMETRES, _MICROMETRES = 0, 1, 2, 3  # of NIfTI's field xyzt_units
_UNITS = {_METRES: "metres", _MICROMETRES: "micrometres"}
_MAGIC = (b"n+1", b"n+2")
_MAGIC_OF_PAIRS = (b"ni1", b"ni2")
_EXPORT_AGAIN = "Export the image again from its source."


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One rule that a file breaks: what was expected, what was found, and what to do about it.

    Attributes:
        names: Whether `value` holds names of files, folders or people; `rule` and `fix` never do.
    """

    rule: str
    value: str
    fix: str
    names: bool = False

    def __str__(self) -> str:
        return f"expected {self.rule}, found {self.value}. {self.fix}"


def header_faults(raw: nibabel.Nifti1Header, *, volumes: int) -> tuple[Fault, ...]:
    """Why a header describes no image that can be used.

    Args:
        raw: The header, unchecked by nibabel.
        volumes: Images that the file has to hold.

    Returns:
        Every reason; none for a sound header.
    """
    magic = tuple(_magic_faults(raw))
    if magic:
        return magic
    faults = (*_shape_faults(raw, volumes), *_storage_faults(raw), *_geometry_faults(raw))
    return faults or tuple(_extent_faults(raw))


def header_remarks(raw: nibabel.Nifti1Header) -> tuple[Fault, ...]:
    """What is odd about a header without faults, but can be used."""
    return (*_size_remarks(raw), *_transform_remarks(raw))


def stored_dtype(raw: nibabel.Nifti1Header) -> np.dtype[np.generic]:
    """Number type of the voxels, byte order included; void where NIfTI defines none."""
    try:
        stored: np.dtype[np.generic] = np.dtype(raw.get_data_dtype())
    except (HeaderDataError, KeyError):  # a code that NIfTI does not define
        stored = np.dtype(np.void)
    return stored


def _magic_faults(raw: nibabel.Nifti1Header) -> Iterator[Fault]:
    """Analyze and half a pair of files look alike otherwise."""
    magic = raw["magic"].item()[:3]
    if magic not in _MAGIC:
        pair = magic in _MAGIC_OF_PAIRS
        yield Fault(
            rule="a NIfTI header in one file with its voxels (magic n+1 or n+2)",
            value="one of a pair (.hdr and .img)" if pair else "another magic word",
            fix="Convert the image to a single .nii.gz file.",
        )


def _shape_faults(raw: nibabel.Nifti1Header, volumes: int) -> Iterator[Fault]:
    dimensions = int(raw["dim"][0])
    sizes = [int(size) for size in raw["dim"][1 : 1 + min(max(dimensions, 0), 7)]]
    shown = " x ".join(map(str, sizes))
    # A series of one volume is one image.
    if volumes == 1 and (dimensions < 3 or any(size != 1 for size in sizes[3:])):
        yield Fault(
            rule="3 dimensions",
            value=f"{dimensions} ({shown})",
            fix="Save one image a file; split a 4-D file into its volumes.",
        )
    elif volumes > 1 and (dimensions != 4 or sizes[3] != volumes):
        yield Fault(
            rule=f"4 dimensions with {volumes} volumes",
            value=f"{dimensions} ({shown})",
            fix="Correct data.layout, or join the images of a case in the layout's order.",
        )
    elif min(sizes) < 1:
        yield Fault(rule="at least 1 voxel along each axis", value=shown, fix=_EXPORT_AGAIN)
    elif math.prod(sizes) > MAX_VOXELS:
        yield Fault(
            rule=f"at most {MAX_VOXELS} voxels",
            value=shown,
            fix="Export the image at its real size.",
        )


def _storage_faults(raw: nibabel.Nifti1Header) -> Iterator[Fault]:
    if stored_dtype(raw).kind not in "iuf":
        yield Fault(
            rule="whole or real numbers as voxels",
            value=f"data type {int(raw['datatype'])}",
            fix=_EXPORT_AGAIN,
        )
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if np.isinf(slope) or (np.isfinite(slope) and slope != 0 and not np.isfinite(intercept)):
        yield Fault(
            rule="a finite scale (scl_slope, scl_inter)",
            value=f"{slope:g}, {intercept:g}",
            fix=_EXPORT_AGAIN,
        )
    offset = float(raw["vox_offset"])
    if not raw.sizeof_hdr <= offset <= _MAX_OFFSET:
        yield Fault(
            rule=f"voxels to begin after {raw.sizeof_hdr} to {_MAX_OFFSET} bytes",
            value=f"{offset:g}",
            fix=_EXPORT_AGAIN,
        )


def _geometry_faults(raw: nibabel.Nifti1Header) -> Iterator[Fault]:
    codes = int(raw["sform_code"]), int(raw["qform_code"])
    if not set(codes) <= _FORM_CODES:
        yield Fault(
            rule=f"sform_code and qform_code out of {sorted(_FORM_CODES)}",
            value=f"{codes[0]} and {codes[1]}",
            fix="Write the transform again: programs drop one of a kind that they do not know.",
        )
        return
    unit = _UNITS.get(_unit(raw))
    if unit is not None:
        yield Fault(
            rule="millimetres as the unit of space (xyzt_units)",
            value=unit,
            fix="Convert pixdim and the transform to millimetres, or set the unit if they are "
            "millimetres already: programs differ in whether they convert.",
        )
        return
    zooms = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(zooms) & (zooms > 0)).all():
        yield Fault(
            rule="voxel sizes (pixdim) above 0 mm",
            value=_sizes(zooms),
            fix=_EXPORT_AGAIN,
        )
        return
    try:
        affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):  # a quaternion longer than 1
        affine = np.full((4, 4), np.nan)
    # One relative to the voxel size, so that tiny voxels are no reason to refuse.
    if (
        not (np.abs(affine) <= _FARTHEST_MM).all()
        or abs(np.linalg.det(affine[:3, :3] / zooms)) < _MIN_VOLUME
    ):
        yield Fault(
            rule="a finite, invertible transform to millimetres (sform or qform)",
            value=str(affine[:3].round(3).tolist()),
            fix=_EXPORT_AGAIN,
        )


def _extent_faults(raw: nibabel.Nifti1Header) -> Iterator[Fault]:
    extents = voxel_sizes(raw.get_best_affine()) * raw["dim"][1:4]
    if extents.max() > _MAX_EXTENT_MM:
        yield Fault(
            rule=f"an image of at most {_MAX_EXTENT_MM:g} mm along each axis",
            value=_sizes(extents),
            fix="Correct pixdim and the transform: they say how large a voxel is.",
        )


def _size_remarks(raw: nibabel.Nifti1Header) -> Iterator[Fault]:
    zooms = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    sizes = voxel_sizes(raw.get_best_affine())
    apart = np.abs(sizes - zooms) * raw["dim"][1:4]
    if zooms.min() < _SMALLEST_MM or zooms.max() > _LARGEST_MM:
        yield Fault(
            rule=f"voxels of {_SMALLEST_MM:g} to {_LARGEST_MM:g} mm",
            value=_sizes(zooms),
            fix="Correct pixdim and the transform, if they are not what was scanned.",
        )
    elif apart.max() > _FORMS_APART_MM:
        yield Fault(
            rule="one voxel size in pixdim and in the transform",
            value=f"{_sizes(zooms)} and {_sizes(sizes)} mm, {apart.max():.3g} mm over the image",
            fix="Write the right size to both: programs differ in which one they use, medfl takes "
            "the transform.",
        )
    fewest = int(raw["dim"][1:4].min())
    if fewest < _FEWEST_SLICES:
        yield Fault(
            rule=f"at least {_FEWEST_SLICES} voxels along each axis",
            value=str(fewest),
            fix="Give the whole scan rather than some of its slices.",
        )


def _transform_remarks(raw: nibabel.Nifti1Header) -> Iterator[Fault]:
    if int(raw["sform_code"]) <= 0 and int(raw["qform_code"]) <= 0:
        yield Fault(
            rule="an orientation (sform or qform with a code above 0)",
            value="none",
            fix="Write the transform: without one, nobody can tell left from right.",
        )
    unit = _unit(raw)
    if unit not in (_UNKNOWN, _MILLIMETRES):
        yield Fault(
            rule="millimetres as the unit of space",
            value=f"code {unit}",
            fix="Set xyzt_units, and check pixdim and the transform.",
        )
    shear = shear_degrees(raw.get_best_affine())
    if shear > _SHEAR_DEGREES:
        yield Fault(
            rule="axes at right angles",
            value=f"shear of {shear:.2g} degrees",
            fix="Resample the image to a grid without shear: ITK, and what is built on it, refuses "
            "the image, and the masks that medfl writes for it.",
        )
    if int(raw["sform_code"]) > 0 and int(raw["qform_code"]) > 0:
        try:
            apart = corners_apart(raw.get_sform(), raw.get_qform(), shape=_shape(raw))
        except (HeaderDataError, ValueError):  # a quaternion longer than 1
            apart = math.inf
        if not apart <= _FORMS_APART_MM:
            yield Fault(
                rule="sform and qform that agree",
                value=f"corners up to {apart:.3g} mm apart",
                fix="Write the right transform to both: programs differ in which one they use.",
            )


def _unit(raw: nibabel.Nifti1Header) -> int:
    return int(raw["xyzt_units"]) & 7


def _shape(raw: nibabel.Nifti1Header) -> tuple[int, int, int]:
    first, second, third = (int(size) for size in raw["dim"][1:4])
    return first, second, third


def _sizes(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
