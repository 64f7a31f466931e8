"""Crops of synthetic patients, varied at random: what may change, and what may not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfl.data.randomise import randomise


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def crops() -> tuple[Tensor, Tensor]:
    """Eight crops of three channels: a brighter ball, which is the region, in tissue, in air."""
    place = torch.stack(
        torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (24, 24, 12)], indexing="ij")
    )
    distance = place.norm(dim=0)
    ball = (distance < 0.4).expand(8, 1, 24, 24, 12)
    noise = torch.rand((8, 3, 24, 24, 12), generator=generator(7))
    images = torch.where(distance < 0.8, 0.6 + 0.1 * noise + 1.0 * ball, 0.0)
    return images, ball.to(torch.uint8).clone()


def test_the_same_generator_gives_the_same_crops_and_another_gives_others(
    crops: tuple[Tensor, Tensor],
) -> None:
    torch.manual_seed(0)
    first = randomise(*crops, generator=generator())
    torch.manual_seed(1)
    again = randomise(*crops, generator=generator())
    other = randomise(*crops, generator=generator(2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_shapes_and_types_stay_and_the_source_is_not_changed(crops: tuple[Tensor, Tensor]) -> None:
    kept = [each.clone() for each in crops]
    found = randomise(*crops, generator=generator())
    for before, source, after in zip(kept, crops, found, strict=True):
        assert torch.equal(before, source)
        assert type(after) is Tensor
        assert (after.shape, after.dtype) == (source.shape, source.dtype)
        assert after.isfinite().all()


def test_a_mask_stays_a_mask_and_moves_with_its_image(crops: tuple[Tensor, Tensor]) -> None:
    moved = 0
    for seed in range(4):
        images, regions = randomise(*crops, generator=generator(seed))
        assert set(regions.unique().tolist()) == {0, 1}
        masks = (each[:, 0].bool() for each in (regions, crops[1]))
        for image, region, before in zip(images, *masks, strict=True):
            tissue = (image != 0).all(dim=0) & ~region
            contrast = image[:, region].mean(dim=1) / image[:, tissue].mean(dim=1)
            assert contrast.max() > 1.2  # the ball that the mask is of
            moved += not torch.equal(region, before)
    assert 8 <= moved <= 24  # half of 32


def test_air_and_empty_channels_stay_empty(crops: tuple[Tensor, Tensor]) -> None:
    images, regions = crops
    images[:, 1] = 0
    found, _ = randomise(images, regions, generator=generator())
    assert not found[:, 1].any()
    for image, before in zip(found, images, strict=True):
        assert image[0, 0, 0, 0] == 0  # a corner is air, however a crop is turned
        assert abs((image[0] == 0).sum() / (before[0] == 0).sum() - 1) < 0.35


def test_channels_are_varied_each_in_its_own_way(crops: tuple[Tensor, Tensor]) -> None:
    images = crops[0][:, :1].expand(-1, 3, -1, -1, -1).clone()
    found, _ = randomise(images, crops[1], generator=generator())
    assert sum(not torch.equal(image[0], image[1]) for image in found) >= 6
