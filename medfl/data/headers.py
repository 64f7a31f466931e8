"""What a NIfTI file says about itself, judged before a single voxel is allocated.

nibabel accepts a zero dimension, a NaN transform or 32767^3 voxels without a word, and a gzip bomb
grows a thousandfold. Here the header is read from the first bytes of the file, every field that
matters is checked, and the voxels are then read with a limit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

MAX_VOXELS = 2**27  # 512 x 512 x 512; a BraTS scan has 8.9 million
_MAX_OFFSET = 2**20
_GRID_TOLERANCE_MM = 1e-2
_CHUNK_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_BITS = 31  # zlib's way of asking for gzip framing and its checksum
_MIN_VOLUME = 1e-3  # of the transform's unit cell, as a part of the voxel's volume
# Beyond these, voxels are a mistake in the header rather than a scan.
_SMALLEST_MM, _LARGEST_MM = 0.1, 20.0
_FORMS_APART_MM = 0.5
_UNKNOWN, _MILLIMETRES = 0, 2  # of NIfTI's field xyzt_units
_COPY_AGAIN = "Copy the file again from its source."
_EXPORT_AGAIN = "Export the image again from its source."

# sizeof_hdr, the first four bytes, tells the versions and the byte order apart.
_HEADER_CLASSES = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}


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


class FileFaults(Exception):
    """A file that cannot be used, with every reason found.

    Args:
        faults: At least one.
    """

    def __init__(self, *faults: Fault) -> None:
        super().__init__(" ".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """The geometry and storage of one image.

    Attributes:
        shape: Voxels along the three stored axes.
        volumes: Images in the file; above 1 only where several were expected.
        affine: 4 x 4, from voxel index to millimetres.
        dtype: Stored number type, byte order included.
        offset: Bytes before the voxels.
        slope: Factor from stored to real values.
        intercept: Added after the factor.
        remarks: What is odd, but can be used.
    """

    shape: tuple[int, int, int]
    volumes: int
    affine: NDArray[np.float64]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float
    remarks: tuple[Fault, ...]

    @property
    def voxels(self) -> int:
        """Number of voxels in all volumes."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.volumes

    @property
    def file_bytes(self) -> int:
        """Length of the uncompressed file."""
        return self.offset + self.voxels * self.dtype.itemsize

    def same_grid(self, other: Header) -> bool:
        """Whether both images have the same voxels at the same places, within 0.01 mm."""
        return self.shape == other.shape and bool(
            np.allclose(self.affine, other.affine, rtol=0, atol=_GRID_TOLERANCE_MM)
        )


def read_header(path: Path, *, volumes: int = 1) -> Header:
    """Read and judge the header of a ``.nii`` or ``.nii.gz`` file; at most 1 MiB is uncompressed.

    Args:
        path: The file.
        volumes: Images that it has to hold: 1 in a 3-D file, several along the fourth axis.

    Raises:
        FileFaults: If the file is no usable NIfTI image of as many dimensions.
    """
    raw = _raw_header(path)
    faults = [*_shape_faults(raw, volumes), *_storage_faults(raw), *_geometry_faults(raw)]
    if faults:
        raise FileFaults(*faults)
    first, second, third = (int(size) for size in raw["dim"][1:4])
    slope = float(raw["scl_slope"])
    scaled = slope != 0 and not np.isnan(slope)  # 0 and NaN are the standard's "not scaled"
    return Header(
        shape=(first, second, third),
        volumes=volumes,
        affine=np.asarray(raw.get_best_affine(), dtype=np.float64),
        dtype=_dtype(raw),
        offset=int(raw["vox_offset"]),
        slope=slope if scaled else 1.0,
        intercept=float(raw["scl_inter"]) if scaled else 0.0,
        remarks=tuple(_remarks(raw)),
    )


def read_voxels(path: Path, header: Header) -> NDArray[np.float32]:
    """Read the voxels that the header announces; a longer file is refused, not read to its end.

    Args:
        path: The file.
        header: What `read_header` returned for it.

    Returns:
        float32 real values in the stored axes' order; several volumes along a last axis.

    Raises:
        FileFaults: If the file is truncated, damaged, or longer than the header says.
    """
    content = bytearray()
    for chunk in _content(path):
        content += chunk
        if len(content) > header.file_bytes + _CHUNK_BYTES:
            break
    if not header.file_bytes <= len(content) <= header.file_bytes + _CHUNK_BYTES:
        more = len(content) > header.file_bytes
        raise FileFaults(
            Fault(
                rule=f"{header.file_bytes} uncompressed bytes, as the header says",
                value="many more" if more else str(len(content)),
                fix=_COPY_AGAIN,
            )
        )
    stored = np.frombuffer(content, dtype=header.dtype, count=header.voxels, offset=header.offset)
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is found as infinity later
        shape = header.shape if header.volumes == 1 else (*header.shape, header.volumes)
        values = stored.reshape(shape, order="F").astype(np.float32)
        if (header.slope, header.intercept) != (1.0, 0.0):
            values = values * np.float32(header.slope) + np.float32(header.intercept)
    return values


def _raw_header(path: Path) -> nibabel.Nifti1Header:
    first = next(_content(path), b"")
    if not first:
        raise FileFaults(Fault(rule="an image", value="an empty file", fix=_COPY_AGAIN))
    if first.lstrip().startswith(b"<"):
        raise FileFaults(
            Fault(
                rule="a NIfTI image",
                value="a web page (HTML or XML)",
                fix="Download the file again; the server sent a page, perhaps for logging in.",
            )
        )
    for order in ("little", "big"):
        header_class = _HEADER_CLASSES.get(int.from_bytes(first[:4], order))
        if header_class is not None and len(first) >= header_class.sizeof_hdr:
            return header_class(first[: header_class.sizeof_hdr], check=False)
    raise FileFaults(Fault(rule="a NIfTI header", value="other data", fix=_COPY_AGAIN))


def _content(path: Path) -> Iterator[bytes]:
    """The uncompressed bytes, in chunks of at most 1 MiB whatever the compression ratio."""
    try:
        with path.open("rb") as stream:
            first = stream.read(len(_GZIP_MAGIC))
            stream.seek(0)
            named_gzip = path.name.lower().endswith(".gz")
            is_gzip = first == _GZIP_MAGIC
            if first and is_gzip != named_gzip and not first.startswith(b"<"):
                raise FileFaults(
                    Fault(
                        rule=f"gzip data {'in' if named_gzip else 'only in'} files named .gz",
                        value="gzip data" if is_gzip else "other data",
                        fix="Give the file the right name, or copy it again from its source.",
                    )
                )
            blocks = iter(lambda: stream.read(_CHUNK_BYTES), b"")
            yield from _gunzip(blocks) if is_gzip else blocks
    except OSError as error:
        raise FileFaults(
            Fault(
                rule="a readable file",
                value=error.strerror or type(error).__name__,
                fix="Let medfl's user read the file.",
            )
        ) from None


def _gunzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Uncompress one or several gzip members; zeros after the last one are padding."""
    member = zlib.decompressobj(wbits=_GZIP_BITS)
    pending = next(blocks, b"")
    try:
        while pending:
            if member.eof:
                member = zlib.decompressobj(wbits=_GZIP_BITS)
            chunk = member.decompress(pending, _CHUNK_BYTES)
            if chunk:
                yield chunk
            pending = member.unconsumed_tail or member.unused_data.lstrip(b"\0")
            pending = pending or next(blocks, b"")
            if member.eof:
                pending = pending.lstrip(b"\0")
    except zlib.error:
        raise FileFaults(
            Fault(rule="intact gzip data", value="damaged data", fix=_COPY_AGAIN)
        ) from None
    if not member.eof:
        raise FileFaults(Fault(rule="intact gzip data", value="a truncated file", fix=_COPY_AGAIN))


def _shape_faults(raw: nibabel.Nifti1Header, volumes: int) -> Iterator[Fault]:
    dimensions = int(raw["dim"][0])
    sizes = [int(size) for size in raw["dim"][1 : 1 + min(max(dimensions, 0), 7)]]
    shown = " x ".join(map(str, sizes))
    if volumes == 1 and dimensions != 3:
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
    if _dtype(raw).kind not in "iuf":
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
    zooms = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(zooms) & (zooms > 0)).all():
        yield Fault(
            rule="voxel sizes (pixdim) above 0 mm",
            value=" x ".join(f"{zoom:g}" for zoom in zooms),
            fix=_EXPORT_AGAIN,
        )
        return
    try:
        affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):  # a quaternion longer than 1
        affine = np.full((4, 4), np.nan)
    # One relative to the voxel size, so that tiny voxels are no reason to refuse.
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3] / zooms)) < _MIN_VOLUME:
        yield Fault(
            rule="a finite, invertible transform to millimetres (sform or qform)",
            value=str(affine[:3].round(3).tolist()),
            fix=_EXPORT_AGAIN,
        )


def _remarks(raw: nibabel.Nifti1Header) -> Iterator[Fault]:
    zooms = [float(zoom) for zoom in raw["pixdim"][1:4]]
    if min(zooms) < _SMALLEST_MM or max(zooms) > _LARGEST_MM:
        yield Fault(
            rule=f"voxels of {_SMALLEST_MM:g} to {_LARGEST_MM:g} mm",
            value=" x ".join(f"{zoom:g}" for zoom in zooms),
            fix="Correct pixdim and the transform, if they are not what was scanned.",
        )
    unit = int(raw["xyzt_units"]) & 7
    if unit not in (_UNKNOWN, _MILLIMETRES):
        yield Fault(
            rule="millimetres as the unit of space",
            value={1: "metres", 3: "micrometres"}.get(unit, f"code {unit}"),
            fix="Set xyzt_units, and check pixdim and the transform.",
        )
    if int(raw["sform_code"]) > 0 and int(raw["qform_code"]) > 0:
        try:
            apart = float(np.abs(raw.get_sform() - raw.get_qform()).max())
        except (HeaderDataError, ValueError):  # a quaternion longer than 1
            apart = math.inf
        if not apart <= _FORMS_APART_MM:
            yield Fault(
                rule="sform and qform that agree",
                value=f"up to {apart:.3g} mm apart",
                fix="Write the right transform to both: programs differ in which one they use.",
            )


def _dtype(raw: nibabel.Nifti1Header) -> np.dtype[np.generic]:
    try:
        stored: np.dtype[np.generic] = np.dtype(raw.get_data_dtype())
    except (HeaderDataError, KeyError):  # a code that NIfTI does not define
        stored = np.dtype(np.void)
    return stored
