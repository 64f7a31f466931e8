"""NIfTI files with headers of our own making, field by field, whatever the fields hold."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

CLASSES = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How an image is written.

    Attributes:
        version: Of NIfTI.
        order: Byte order.
        dtype: Number type of the voxels.
        offset: Bytes before the voxels; 0 stands for the usual number.
        more_axes: Sizes of further axes.
        compressed: As .nii.gz.
        fields: Header fields by nibabel's names, whatever they hold.
    """

    version: int = 1
    order: Literal["<", ">"] = "<"
    dtype: str = "f4"
    offset: int = 0
    more_axes: tuple[int, ...] = ()
    compressed: bool = True
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """How the file's name ends."""
        return ".nii.gz" if self.compressed else ".nii"

    def as_mask(self) -> Stored:
        """The same for a mask: whole numbers without a scale."""
        plain = {name: self.fields[name] for name in self.fields if not name.startswith("scl_")}
        return replace(self, dtype="u1", fields=plain)

    def write(self, path: Path, values: NDArray[Any]) -> None:
        """Write values, cast to the number type."""
        header = CLASSES[self.version](endianness=self.order)
        kind = np.dtype(self.order + self.dtype)
        header.set_data_dtype(kind)
        header.set_data_shape((*values.shape, *self.more_axes))
        header["magic"] = b"n+1" if self.version == 1 else b"n+2\0\r\n\032\n"
        offset = self.offset or header.sizeof_hdr + 4
        header["vox_offset"] = offset
        for name, value in self.fields.items():
            header[name] = value
        content = header.binaryblock.ljust(offset, b"\0")
        content += values.astype(kind).tobytes(order="F")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content, 1) if self.compressed else content)


def sform(affine: NDArray[np.float64], *, code: int = 1, sizes: Any = None) -> dict[str, Any]:
    """Fields that say a transform as sform; pixdim follows it unless sizes are given."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0) if sizes is None else sizes
    rows = {f"srow_{axis}": affine[number] for number, axis in enumerate("xyz")}
    return {**rows, "sform_code": code, "pixdim": [1, *zooms, 0, 0, 0, 0]}


def qform(
    quaternion: tuple[float, float, float],
    *,
    sizes: tuple[float, float, float],
    offset: tuple[float, float, float] = (-20.0, 11.0, 7.0),
    qfac: float = 1.0,
    code: int = 1,
) -> dict[str, Any]:
    """Fields that say a transform as qform."""
    return {
        **{f"quatern_{axis}": value for axis, value in zip("bcd", quaternion, strict=True)},
        **{f"qoffset_{axis}": value for axis, value in zip("xyz", offset, strict=True)},
        "qform_code": code,
        "pixdim": [qfac, *sizes, 0, 0, 0, 0],
    }
