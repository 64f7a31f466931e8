"""Cases of 240 x 240 x 155 voxels in four modalities, written fast enough to make hundreds.

    python pipelines/full_size_cases.py ROOT CASES

Three cases are made and compressed. Every further one repeats one of them but for a voxel in a
corner, so that no two have equal content; gzip allows that voxel to be a part of its own.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (240, 240, 155)
DISTINCT = 3
ENDINGS = ("t1", "t1ce", "t2", "flair")

_HEADER_BYTES = 352
_LEVEL = 1


def main() -> None:
    """Write the cases below the folder that the first argument names."""
    root, cases = Path(sys.argv[1]), int(sys.argv[2])
    bodies = [[_body(10 * case + n) for n in range(len(ENDINGS))] for case in range(DISTINCT)]
    mask = _mask()
    for number in range(cases):
        name = f"BraTS2021_{number:05}"
        folder = root / name
        folder.mkdir(parents=True)
        for channel, ending in enumerate(ENDINGS):
            corner = np.int16(1 + len(ENDINGS) * number + channel)
            content = bodies[number % DISTINCT][channel] + gzip.compress(corner.tobytes())
            (folder / f"{name}_{ending}.nii.gz").write_bytes(content)
        (folder / f"{name}_seg.nii.gz").write_bytes(mask)


def _body(seed: int) -> bytes:
    """A compressed image without its last voxel: a noisy head in air that is exactly 0."""
    voxels = np.zeros(SHAPE, np.int16)
    random = np.random.default_rng(seed)
    head = random.normal(1000, 150, (130, 160, 110)).astype(np.int16)
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in head.shape], indexing="ij")
    voxels[55:185, 40:200, 20:130] = np.where(sum(axis**2 for axis in axes) < 1, head, 0)
    return gzip.compress(_file(voxels)[:-2], _LEVEL)


def _mask() -> bytes:
    label = np.zeros(SHAPE, np.uint8)
    label[90:130, 90:130, 60:100] = 2
    label[100:120, 100:120, 70:90] = 1
    label[105:115, 105:115, 75:85] = 4
    return gzip.compress(_file(label), _LEVEL)


def _file(voxels: np.ndarray) -> bytes:
    content: bytes = nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()
    if len(content) != _HEADER_BYTES + voxels.nbytes:
        raise ValueError(f"Expected a header of {_HEADER_BYTES} bytes, found another.")
    return content


if __name__ == "__main__":
    main()
