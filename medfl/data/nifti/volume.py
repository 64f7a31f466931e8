"""`read_volume`: the voxels of one image or mask, the right way up for a picture of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from medfl.data.nifti.headers import FileFaults, read_header, read_voxels
from medfl.errors import DataError


def read_volume(path: str | Path) -> NDArray[np.float32]:
    """Read one image or mask.

    Args:
        path: A NIfTI file of three axes.

    Returns:
        float32 voxels along right, anterior, superior.

    Raises:
        DataError: If the file cannot be read.
    """
    path = Path(path)
    try:
        header = read_header(path)
        voxels = read_voxels(path, header)
    except FileFaults as error:
        raise DataError(f"{path}: {error}") from None
    turned = apply_orientation(voxels, io_orientation(header.affine))
    return np.asarray(turned, dtype=np.float32)
