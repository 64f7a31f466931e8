"""What a NIfTI file says about itself, judged before a single voxel is allocated.

A gzip bomb grows a thousandfold. Here the header is read from the first bytes of the file, every
field that matters is checked, and the voxels are then read with a limit. The preflight and training
read through these functions and no others, so that what was found sound is what is trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from medfl.data.nifti.faults import Fault, header_faults, header_remarks, stored_dtype
from medfl.data.nifti.geometry import corners_apart

_GRID_TOLERANCE_MM = 0.1  # a tenth of the finest voxels; float32 headers are far below it
_CHUNK_BYTES = 2**20
_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_BITS = 31  # zlib's way of asking for gzip framing and its checksum
_COPY_AGAIN = "Copy the file again from its source."

# sizeof_hdr, the first four bytes, tells the versions and the byte order apart.
_HEADER_CLASSES = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}


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
        """Whether both images have the same voxels at the same places, within 0.1 mm."""
        return self.shape == other.shape and self.mm_apart(other) <= _GRID_TOLERANCE_MM

    def difference(self, other: Header) -> str:
        """How another image's grid differs from this one, for a message."""
        if self.shape != other.shape:
            return f"{other.shape} voxels instead of {self.shape}"
        return f"corners up to {self.mm_apart(other):.3g} mm apart"

    def mm_apart(self, other: Header) -> float:
        """How far the corner of this image lies from that of an image of the same shape."""
        return corners_apart(self.affine, other.affine, shape=self.shape)


def read_header(path: Path, *, volumes: int = 1) -> Header:
    """Read and judge the header of a ``.nii`` or ``.nii.gz`` file; at most 1 MiB is uncompressed.

    Args:
        path: The file.
        volumes: Images that it has to hold: 1 in a 3-D file, several along the fourth axis.

    Raises:
        FileFaults: If the file is no usable NIfTI image of as many dimensions.
    """
    raw = _raw_header(path)
    faults = header_faults(raw, volumes=volumes)
    if faults:
        raise FileFaults(*faults)
    first, second, third = (int(size) for size in raw["dim"][1:4])
    slope = float(raw["scl_slope"])
    scaled = slope != 0 and not np.isnan(slope)  # 0 and NaN are the standard's "not scaled"
    return Header(
        shape=(first, second, third),
        volumes=volumes,
        affine=np.asarray(raw.get_best_affine(), dtype=np.float64),
        dtype=stored_dtype(raw),
        offset=int(raw["vox_offset"]),
        slope=slope if scaled else 1.0,
        intercept=float(raw["scl_inter"]) if scaled else 0.0,
        remarks=header_remarks(raw),
    )


def copy_geometry(source: Path, header: nibabel.Nifti1Header) -> None:
    """Take over where a file's voxels lie, as its header says it.

    Field by field: nibabel computes some of them anew, and refuses a quaternion that is longer than
    1 by a hair even where the other transform counts.

    Args:
        source: A file whose header `read_header` has accepted.
        header: Of an image on the same grid; it is changed.

    Raises:
        FileFaults: If the file is no NIfTI image any more.
    """
    raw = _raw_header(source)
    for name in _GEOMETRY:
        header[name] = raw[name]
    header["pixdim"][:4] = raw["pixdim"][:4]


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
            raw = header_class(first[: header_class.sizeof_hdr], check=False)
            # 0 is the standard's way to say 1, and nibabel would refuse it.
            if raw["pixdim"][0] == 0:
                raw["pixdim"][0] = 1
            return raw
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
                fix="Put the file back if it is gone, and let medfl's user read it.",
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
