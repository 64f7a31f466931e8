"""From the files of a case to tensors in the study's frame.

How a scan gets there is `medfl.data.framing`'s; axes D, H, W are right, anterior and superior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from monai.data import MetaTensor
from torch import Tensor

from medfl.config.site import MaskScheme, Modality, Region
from medfl.data.cohort import Case
from medfl.data.framing import framed_scans, stacked
from medfl.data.label_schemes import require_regions
from medfl.data.labels import regions_of
from medfl.data.nifti.scans import MASK
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
    def absent_channels(self) -> tuple[int, ...]:
        """Channels of the image that are 0."""
        return tuple(self.modalities.index(name) for name in self.absent)

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
    return stacked(_load(case, frame, keys=frame.present), modalities=frame.modalities)


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
    image = stacked(loaded, modalities=frame.modalities)
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


def _load(case: Case, frame: Frame, *, keys: Sequence[str]) -> dict[str, MetaTensor]:
    """Files in the frame's orientation and spacing: key -> MetaTensor of shape (1, D, H, W)."""
    files = {str(name): path for name, path in case.images.items()}
    if case.mask is not None:
        files[MASK] = case.mask
    missing = [key for key in keys if key not in files]
    if missing:
        raise DataError(f"{case.case_id}: expected images {list(keys)}, found no {missing}.")
    return framed_scans(
        {key: files[key] for key in keys},
        channels={str(name): number for name, number in case.channels.items()},
        volumes=case.volumes,
        spacing=frame.spacing,
        case_id=case.case_id,
    )


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
