"""Scans in the frame that a network knows, and the way back to the grid of their files.

Every scan is turned to the orientation RAS, normalised by itself alone, and brought to one spacing.
Nothing here knows of sites or studies: bundles carry a copy of this module, and of all it imports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd, Spacingd, SpatialResample
from torch import Tensor

from medfl.data.intensity import normalise_scan
from medfl.data.nifti.faults import MAX_VOXELS
from medfl.data.nifti.scans import MASK, read_scans
from medfl.errors import DataError


def framed_scans(
    paths: Mapping[str, Path],
    *,
    channels: Mapping[str, int],
    volumes: int,
    spacing: Sequence[float] | Literal["native"],
    case_id: str,
) -> dict[str, MetaTensor]:
    """Read the files of a case into the frame.

    Args:
        paths: Modality or `MASK` -> file; a modality first.
        channels: Modality -> its volume, where one 4-D file holds several modalities.
        volumes: Volumes of such a file; 1 where every modality has a file.
        spacing: Millimetres along right, anterior, superior; ``native`` keeps each scan's.
        case_id: What errors call the case.

    Returns:
        Key -> float32 of shape (1, D, H, W), images normalised; the metadata let
        `restore_probabilities` find the way back.

    Raises:
        DataError: If a file cannot be read, grids differ, voxels are no numbers, or the spacing
            would blow the image up.
    """
    keys = tuple(paths)
    turn = Orientationd(keys, axcodes="RAS", labels=None)
    loaded: dict[str, MetaTensor] = turn(read_scans(paths, channels=channels, volumes=volumes))
    for key in keys:  # before resampling, which would blur the statistics
        if key != MASK:
            loaded[key] = _normalised(loaded[key], paths[key])
    if spacing == "native":
        return loaded
    _require_bounded(loaded[keys[0]], spacing, case_id=case_id)
    modes = ["nearest" if key == MASK else "bilinear" for key in keys]
    resample = Spacingd(keys, pixdim=spacing, mode=modes, padding_mode="border")
    resampled: dict[str, MetaTensor] = resample(loaded)
    return resampled


def stacked(scans: Mapping[str, MetaTensor], *, modalities: Sequence[str]) -> MetaTensor:
    """The scans of a case as one image.

    Args:
        scans: What `framed_scans` returned.
        modalities: The wanted channels, in this order; one without a scan is 0, which is air.

    Returns:
        float32 image_CDHW with the metadata of the first scan.
    """
    first = next(scans[name] for name in modalities if name in scans)
    air = torch.zeros_like(first.as_tensor())
    channels = [scans[name].as_tensor() if name in scans else air for name in modalities]
    return MetaTensor(torch.cat(channels), meta=first.meta)


def restore_probabilities(probabilities_RDHW: Tensor, *, image: MetaTensor) -> Tensor:
    """Bring probabilities from the frame back to the grid of the scanner's files.

    Args:
        probabilities_RDHW: In the frame.
        image: What `stacked` returned for the case.

    Returns:
        float32 of shape (R, X, Y, Z) along the source's stored axes.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float64)
    restored: MetaTensor = resample(
        MetaTensor(probabilities_RDHW.cpu().to(torch.float32), affine=image.affine),
        dst_affine=torch.as_tensor(np.asarray(image.meta["original_affine"], dtype=np.float64)),
        spatial_size=[int(size) for size in image.meta["spatial_shape"]],
    )
    values: Tensor = restored.as_tensor().clamp(0, 1).to(torch.float32)
    return values


def _require_bounded(image: MetaTensor, spacing: Sequence[float], *, case_id: str) -> None:
    """Refuse an image that a study's finer voxels would blow up."""
    finer = math.prod(image.pixdim.tolist()) / math.prod(spacing)
    voxels = image[0].numel() * finer
    if voxels > MAX_VOXELS:
        raise DataError(
            f"{case_id}: expected at most {MAX_VOXELS} voxels at the study's spacing, found "
            f"{voxels:.3g}. Correct pixdim and the transform, or ask for a coarser study."
        )


def _normalised(image: MetaTensor, path: Path) -> MetaTensor:
    values = image.as_tensor().numpy()
    if not np.isfinite(values).all():
        raise DataError(
            f"{path}: expected finite voxels, found NaN or infinity. Export the image again."
        )
    scan = torch.from_numpy(normalise_scan(values[0]))[None]
    return MetaTensor(scan, meta=image.meta)
