"""A mask on disk: a model's voxels with the geometry of the images; bundles carry a copy."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from medfl.data.nifti.headers import copy_geometry
from medfl.durable import written_aside
from medfl.segmentation.notice import NOTICE

INSIDE = 0.5
"""A voxel is inside a region where the region's probability is above."""


def save_like(voxels: NDArray[np.generic], path: Path, *, source: Path) -> None:
    """Write voxels with the geometry of another file, and none of its texts.

    Args:
        voxels: (X, Y, Z) on the source's grid, or (X, Y, Z, R) for several volumes.
        path: Where to; ``.nii`` or ``.nii.gz``.
        source: A file with the same grid, which was read before; its qform, sform, voxel sizes and
            unit are taken over, field by field.

    Raises:
        OSError: If the file cannot be written; nothing is left behind.
    """
    image = nibabel.Nifti1Image(voxels, None)
    copy_geometry(source, image.header)
    image.header["descrip"] = NOTICE.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as draft:
        nibabel.save(image, draft)
