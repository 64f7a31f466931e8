"""K crops of one patient: where they lie, and how they are varied.

Half of a patient's crops are centred on tumour, because tumour fills a hundredth of a scan. All
randomness comes from the caller's generator, and nothing here sees a second patient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfl.data.transforms import PreparedCase

Size = tuple[int, int, int]

_FLIP_PROBABILITY = 0.5
_MAX_SCALE = 0.1  # of the contrast, either way
_MAX_SHIFT = 0.1  # of typical tissue's brightness, either way
_RIGHT_AXIS = 1  # of a CDHW tensor: left and right mirror each other, the other axes do not


def draw_crops(
    cases: Sequence[PreparedCase],
    *,
    crop_size: Size,
    count: int,
    generator: torch.Generator,
    absent: Sequence[int] = (),
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cut and vary `count` crops of one patient.

    Args:
        cases: All cases of the patient; each crop comes from a case chosen at random.
        crop_size: Voxels of a crop.
        count: K, the number of crops; at least 1.
        generator: The only source of randomness, on the CPU.
        absent: Channels that this site does not have; they stay 0.
        dropout: Probability that one of the other channels of a crop is emptied; a crop whose
            channels would all be emptied keeps them.

    Returns:
        float32 image_KCDHW and uint8 regions_KRDHW.

    Raises:
        ValueError: If there is no case or `count` is below 1.
    """
    images, regions = cut_crops(cases, crop_size=crop_size, count=count, generator=generator)
    images, regions = augment(images, regions, generator=generator)
    return _emptied(images, absent=absent, dropout=dropout, generator=generator), regions


def cut_crops(
    cases: Sequence[PreparedCase], *, crop_size: Size, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut crops as `draw_crops` does, without varying them.

    Crops 0, 2, 4... are centred on a tumour voxel where the patient has any, the others on a head
    voxel outside the tumour; a single crop is either with equal chance. A crop that would reach
    over the edge is moved inside; what a small case lacks is filled with zeros, which is air.
    """
    if not cases or count < 1:
        raise ValueError(f"Expected at least 1 case and 1 crop, found {len(cases)} and {count}.")
    images, regions = [], []
    for number in range(count):
        wants_tumour = number % 2 == 0 if count > 1 else _below(2, generator) == 0
        case, centre = _choose_centre(cases, wants_tumour=wants_tumour, generator=generator)
        images.append(_cut(case.image_CDHW, centre, crop_size))
        regions.append(_cut(case.regions_RDHW, centre, crop_size))
    return torch.stack(images), torch.stack(regions)


def augment(
    image_KCDHW: Tensor,
    regions_KRDHW: Tensor,
    *,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mirror half of the crops left to right, and vary contrast and brightness of every channel.

    Args:
        image_KCDHW: Crops; not changed.
        regions_KRDHW: Their regions; not changed.
        generator: The only source of randomness.

    Returns:
        New tensors of the same shapes and types; brightness varies by at most 10 % of typical
        tissue and contrast by at most 10 %.
    """
    crops, channels = image_KCDHW.shape[:2]
    flipped = torch.rand(crops, generator=generator) < _FLIP_PROBABILITY
    per_channel = (2, crops, channels, 1, 1, 1)
    scale, shift = torch.rand(per_channel, generator=generator) * 2 - 1
    images = image_KCDHW * (1 + _MAX_SCALE * scale) + _MAX_SHIFT * shift
    regions = regions_KRDHW.clone()
    images[flipped] = images[flipped].flip(_RIGHT_AXIS + 1)
    regions[flipped] = regions[flipped].flip(_RIGHT_AXIS + 1)
    return images, regions


def _emptied(
    image_KCDHW: Tensor, *, absent: Sequence[int], dropout: float, generator: torch.Generator
) -> Tensor:
    """Crops without the absent channels and, at random, without further ones.

    As ModDrop (Neverova et al. 2016) and HeMIS (Havaei et al. 2016) train: a network that has met
    every subset of its channels does not depend on any one.
    """
    kept = torch.ones(image_KCDHW.shape[:2], dtype=torch.bool)
    if dropout:
        kept = torch.rand(kept.shape, generator=generator) >= dropout
    kept[:, list(absent)] = False
    nothing_left = ~kept.any(dim=1)
    kept[nothing_left] = True
    kept[:, list(absent)] = False
    return torch.where(kept[:, :, None, None, None], image_KCDHW, 0.0)


def _choose_centre(
    cases: Sequence[PreparedCase], *, wants_tumour: bool, generator: torch.Generator
) -> tuple[PreparedCase, Size]:
    """A case and a voxel of it: of the wanted kind if the patient has any, else of any kind."""
    preferred = [(case, case.foreground if wants_tumour else case.background) for case in cases]
    other = [(case, case.background if wants_tumour else case.foreground) for case in cases]
    choices = [choice for choice in preferred if len(choice[1])]
    choices = choices or [choice for choice in other if len(choice[1])]
    if not choices:  # neither tumour nor head: an empty image
        case = cases[_below(len(cases), generator)]
        choices = [(case, torch.arange(case.image_CDHW[0].numel()))]
    case, voxels = choices[_below(len(choices), generator)]
    index = int(voxels[_below(len(voxels), generator)])
    plane, column = divmod(index, case.image_CDHW[0, 0].numel())
    return case, (plane, *divmod(column, case.image_CDHW.shape[-1]))


def _cut(volume_CDHW: Tensor, centre: Size, crop_size: Size) -> Tensor:
    """The box around `centre`, moved inside the volume; padded evenly if the volume is smaller."""
    crop = volume_CDHW.new_zeros((len(volume_CDHW), *crop_size))
    source, target = [slice(None)], [slice(None)]
    for middle, wanted, available in zip(centre, crop_size, volume_CDHW.shape[1:], strict=True):
        length = min(wanted, available)
        start = min(max(middle - wanted // 2, 0), available - length)
        offset = (wanted - length) // 2
        source.append(slice(start, start + length))
        target.append(slice(offset, offset + length))
    crop[tuple(target)] = volume_CDHW[tuple(source)]
    return crop


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))
