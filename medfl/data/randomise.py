"""Crops of synthetic patients under far wider variation than any scanner shows.

Domain randomisation: a network that has met every look, however odd, takes a real one for one more
of them (Billot et al., "SynthSeg", Medical Image Analysis 2023, arXiv 2107.09559; Tobin et al.,
arXiv 1703.06907). The transforms are MONAI's. Patients of a hospital are never varied like this: a
hospital's own training wants its own look.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandAffined,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandHistogramShift,
    RandSimulateLowResolution,
)
from monai.utils import convert_to_tensor
from torch import Tensor

_IMAGE, _REGIONS = "image", "regions"
_SEEDS = 2**31


def randomise(
    image_KCDHW: Tensor, regions_KRDHW: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Turn, stretch, shade, blur and bend each crop; each channel in its own way but for the shape.

    Args:
        image_KCDHW: Crops, 0 is air; not changed.
        regions_KRDHW: Their regions, 0 or 1; not changed.
        generator: The only source of randomness, on the CPU.

    Returns:
        New tensors of the same shapes and types. Air stays 0, and so does an empty channel.
    """
    images, regions = [], []
    for image, region in zip(image_KCDHW, regions_KRDHW, strict=True):
        shape = _shape().set_random_state(_seed(generator))
        moved = shape({_IMAGE: image, _REGIONS: region.float()})
        turned = convert_to_tensor(moved[_IMAGE], track_meta=False)
        images.append(torch.stack([_varied(channel, _seed(generator)) for channel in turned]))
        regions.append(convert_to_tensor(moved[_REGIONS], track_meta=False))
    return (
        torch.stack(images).to(image_KCDHW.dtype),
        torch.stack(regions).to(regions_KRDHW.dtype),
    )


def _varied(channel_DHW: Tensor, seed: int) -> Tensor:
    # A channel of one value has no contrast to bend, and MONAI warns of it.
    if channel_DHW.min() == channel_DHW.max():
        return channel_DHW
    varied = _look().set_random_state(seed)(channel_DHW[None])
    plain = convert_to_tensor(varied, track_meta=False)[0]
    return torch.where(channel_DHW == 0, 0.0, plain)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(_SEEDS, (1,), generator=generator))


# Kept, since making one takes as long as using it; every use begins with a seed of its own.
@cache
def _shape() -> Compose:
    """Of a crop: the same for all channels and the mask. Slices stay in their plane, or nearly."""
    tilt, turn = math.radians(5), math.radians(20)
    return Compose(
        [
            RandAffined(
                keys=(_IMAGE, _REGIONS),
                prob=0.5,
                rotate_range=(tilt, tilt, turn),
                scale_range=(0.25, 0.25, 0.15),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            )
        ]
    )


@cache
def _look() -> Compose:
    """Of one channel of a crop."""
    return Compose(
        [
            RandHistogramShift(num_control_points=(3, 8), prob=0.4),
            RandAdjustContrast(prob=0.4, gamma=(0.5, 2.0)),
            RandBiasField(degree=3, coeff_range=(-0.3, 0.3), prob=0.5),
            RandSimulateLowResolution(prob=0.2, zoom_range=(0.4, 1.0)),
            RandGaussianSmooth(
                prob=0.2, sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2), sigma_z=(0.1, 0.6)
            ),
            RandGaussianNoise(prob=0.3, std=0.1),
        ]
    )
