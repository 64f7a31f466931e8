"""From the files of a case to tensors in the study's frame, and back.

Every scan is turned to the orientation RAS, brought to the study's spacing, and normalised by
itself alone. Axes D, H, W are right, anterior and superior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd, Spacingd, SpatialResample
from torch import Tensor

from medfl.config.site import MaskScheme, Modality, Region
from medfl.data.cohort import Case
from medfl.data.intensity import normalise_scan
from medfl.data.label_schemes import require_regions
from medfl.data.labels import regions_of
from medfl.data.nifti.faults import MAX_VOXELS
from medfl.data.nifti.scans import MASK, read_scans
from medfl.errors import DataError

_MAX_CENTRES = 20_000
# Darker than this part of typical tissue in every modality is air: no place for a crop's centre.
_AIR = 0.25


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How a case becomes tensors.

    Attributes:
        modalities: Channels of the image, in this order.
        regions: Channels of the multi-hot mask, in this order.
        spacing: Millimetres along right, anterior, superior; ``native`` keeps each scan's.
        label_scheme: What the masks' values mean.
        absent: Modalities that the site does not have; their channels are 0, which is air.

    Raises:
        DataError: If the scheme cannot show a region, or no modality is left.
    """

    modalities: tuple[Modality, ...]
    regions: tuple[Region, ...]
    spacing: tuple[float, float, float] | Literal["native"]
    label_scheme: MaskScheme
    absent: tuple[Modality, ...] = ()

    def __post_init__(self) -> None:
        require_regions(self.regions, scheme=self.label_scheme)
        if not self.present:
            raise DataError(f"Expected at least one of {list(self.modalities)}, found none.")

    @property
    def present(self) -> tuple[Modality, ...]:
        """The modalities that are read."""
        return tuple(name for name in self.modalities if name not in self.absent)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCase:
    """One case in the frame.

    Attributes:
        image_CDHW: float32, one channel a modality; 0 is air, 1 typical tissue.
        regions_RDHW: uint8 multi-hot, one channel a region.
        foreground: int64 flat voxel indices inside any region; evenly thinned to at most 20,000.
        background: The same for head voxels outside all regions.
        spacing_mm: Voxel size along right, anterior, superior.
    """

    image_CDHW: Tensor
    regions_RDHW: Tensor
    foreground: Tensor
    background: Tensor
    spacing_mm: tuple[float, float, float]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors."""
        tensors = (self.image_CDHW, self.regions_RDHW, self.foreground, self.background)
        return sum(tensor.nbytes for tensor in tensors)


def prepare_image(case: Case, frame: Frame) -> MetaTensor:
    """Read the images of a case, mask or not.

    Args:
        case: The files.
        frame: The frame to bring them to.

    Returns:
        float32 image_CDHW; its metadata let `restore_probabilities` find the way back.

    Raises:
        DataError: If a file cannot be read or the images' grids differ.
    """
    return _image(_load(case, frame, keys=frame.present), frame)


def prepare_case(case: Case, frame: Frame) -> PreparedCase:
    """Read images and mask of a case.

    Raises:
        DataError: If a file is missing or cannot be read, grids differ, or the mask's values
            contradict the scheme.
    """
    if case.mask is None:
        raise DataError(
            f"{case.case_id}: expected a mask, found none. Add it, or leave the case out."
        )
    loaded = _load(case, frame, keys=(*frame.present, MASK))
    image = _image(loaded, frame)
    try:
        regions = regions_of(
            loaded[MASK].as_tensor()[0], scheme=frame.label_scheme, regions=frame.regions
        )
    except DataError as error:
        raise DataError(f"{case.mask}: {error}") from None
    spacing = tuple(float(size) for size in image.pixdim)
    image_CDHW = image.as_tensor()
    foreground, background = _centres(image_CDHW, regions)
    return PreparedCase(
        image_CDHW=image_CDHW,
        regions_RDHW=regions,
        foreground=foreground,
        background=background,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def restore_probabilities(probabilities_RDHW: Tensor, *, image: MetaTensor) -> Tensor:
    """Bring probabilities from the frame back to the grid of the scanner's files.

    Args:
        probabilities_RDHW: In the frame.
        image: What `prepare_image` returned for the case.

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


def _load(case: Case, frame: Frame, *, keys: Sequence[str]) -> dict[str, MetaTensor]:
    """Files in the frame's orientation and spacing: key -> MetaTensor of shape (1, D, H, W)."""
    paths: dict[str, Path] = {key: path for key, path in case.images.items() if key in keys}
    if case.mask is not None and MASK in keys:
        paths[MASK] = case.mask
    missing = [key for key in keys if key not in paths]
    if missing:
        raise DataError(f"{case.case_id}: expected images {list(keys)}, found no {missing}.")
    turn = Orientationd(keys, axcodes="RAS", labels=None)
    loaded: dict[str, MetaTensor] = turn(
        read_scans(paths, channels=case.channels, volumes=case.volumes)
    )
    for modality in frame.present:  # before resampling, which would blur the statistics
        loaded[modality] = _normalised(loaded[modality], paths[modality])
    if frame.spacing == "native":
        return loaded
    _require_bounded(loaded[frame.present[0]], frame.spacing, case_id=case.case_id)
    modes = ["nearest" if key == MASK else "bilinear" for key in keys]
    resample = Spacingd(keys, pixdim=frame.spacing, mode=modes, padding_mode="border")
    resampled: dict[str, MetaTensor] = resample(loaded)
    return resampled


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


def _image(loaded: Mapping[str, MetaTensor], frame: Frame) -> MetaTensor:
    first = loaded[frame.present[0]]
    air = torch.zeros_like(first.as_tensor())
    channels = [
        air if name in frame.absent else loaded[name].as_tensor() for name in frame.modalities
    ]
    return MetaTensor(torch.cat(channels), meta=first.meta)


def _centres(image_CDHW: Tensor, regions_RDHW: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices of tumour voxels, and of head voxels without tumour."""
    tumour = regions_RDHW.any(dim=0).flatten()
    head = (image_CDHW.amax(dim=0) > _AIR).flatten()
    return _thinned(tumour.nonzero()[:, 0]), _thinned((head & ~tumour).nonzero()[:, 0])


def _thinned(indices: Tensor) -> Tensor:
    """At most 20,000 of the indices, evenly spread, the same ones every time."""
    if len(indices) <= _MAX_CENTRES:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, _MAX_CENTRES, dtype=torch.float64).long()]
