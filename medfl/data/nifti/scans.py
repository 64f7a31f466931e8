"""The NIfTI files of one case as MONAI's tensors, on one grid, or refused.

MONAI's readers are not used: where pixdim and the transform differ by a hair, they exchange the
transform for another one without a word, so that images and mask of a case part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys
from numpy.typing import NDArray

from medfl.data.nifti.headers import FileFaults, Header, read_header, read_voxels
from medfl.errors import DataError

MASK = "mask"
"""The key of the mask, beside those of the modalities."""


def read_scans(
    paths: Mapping[str, Path], *, channels: Mapping[str, int], volumes: int
) -> dict[str, MetaTensor]:
    """Read all files of a case, each once.

    Args:
        paths: Modality or `MASK` -> file.
        channels: Modality -> its volume, where one 4-D file holds several modalities.
        volumes: Volumes of such a file; 1 where every modality has a file.

    Returns:
        Key -> float32 of shape (1, X, Y, Z) along the stored axes, with the file's transform.

    Raises:
        DataError: If a file cannot be read, or is on another grid than the first.
    """
    headers = _headers(paths, volumes=volumes)
    files: dict[Path, NDArray[np.float32]] = {}
    for key, path in paths.items():
        if path not in files:
            try:
                files[path] = read_voxels(path, headers[key])
            except FileFaults as error:
                raise DataError(f"{path}: {error}") from None
    return {
        key: _scan(
            files[path][..., channels[key]] if key in channels else files[path],
            affine=headers[key].affine,
        )
        for key, path in paths.items()
    }


def _scan(voxels: NDArray[np.float32], *, affine: NDArray[np.float64]) -> MetaTensor:
    return MetaTensor(
        torch.from_numpy(voxels)[None],
        affine=torch.from_numpy(affine),
        meta={
            "original_affine": affine,
            "spatial_shape": voxels.shape,
            "space": SpaceKeys.RAS,
        },
    )


def _headers(paths: Mapping[str, Path], *, volumes: int) -> dict[str, Header]:
    """Refuse a file that would break or swamp the reader, and images on different grids."""
    headers = {}
    for key, path in paths.items():
        try:
            headers[key] = read_header(path, volumes=1 if key == MASK else volumes)
        except FileFaults as error:
            raise DataError(f"{path}: {error}") from None
    first, *others = paths
    for key in others:
        if not headers[first].same_grid(headers[key]):
            raise DataError(
                f"{paths[key]}: expected the grid of {paths[first].name} (shape and affine), found "
                f"{headers[first].difference(headers[key])}. Register and resample all images of "
                "a case to one grid."
            )
    return headers
