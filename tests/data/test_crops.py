"""Crops of one patient: where they lie, how they vary, and what randomness they use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medfl.data.crops import augment, cut_crops, draw_crops
from medfl.data.transforms import PreparedCase

SHAPE = (24, 20, 16)
SIZE = (8, 8, 6)


def prepared(
    *,
    shape: Sequence[int] = SHAPE,
    tumour_at: tuple[int, int, int] | None = (20, 3, 9),
    head: bool = True,
    first_value: int = 1,
) -> PreparedCase:
    """Two channels of unique values, and a tumour of one voxel."""
    voxels = torch.Size(shape).numel()
    values = torch.arange(first_value, first_value + voxels, dtype=torch.float32).reshape(*shape)
    regions = torch.zeros(1, *shape, dtype=torch.uint8)
    if tumour_at is not None:
        regions[0][tumour_at] = 1
    inside = regions[0].flatten().bool()
    return PreparedCase(
        image_CDHW=torch.stack([values, -values]),
        regions_RDHW=regions,
        foreground=inside.nonzero()[:, 0],
        background=(~inside).nonzero()[:, 0] if head else torch.zeros(0, dtype=torch.int64),
        spacing_mm=(1.0, 1.0, 1.0),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes_and_types() -> None:
    images, regions = draw_crops([prepared()], crop_size=SIZE, count=3, generator=generator())
    assert images.shape == (3, 2, *SIZE)
    assert regions.shape == (3, 1, *SIZE)
    assert (images.dtype, regions.dtype) == (torch.float32, torch.uint8)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_a_crop_is_a_box_of_the_case_with_its_own_regions(seed: int, count: int) -> None:
    case = prepared()
    images, regions = cut_crops([case], crop_size=SIZE, count=count, generator=generator(seed))
    for image, region in zip(images, regions, strict=True):
        index = int(image[0, 0, 0, 0]) - 1
        x, y, z = index // (20 * 16), index // 16 % 20, index % 16
        box = (slice(None), slice(x, x + 8), slice(y, y + 8), slice(z, z + 6))
        assert torch.equal(image, case.image_CDHW[box])
        assert torch.equal(region, case.regions_RDHW[box])


@given(seed=st.integers(0, 10_000), count=st.integers(2, 7))
def test_at_least_half_of_the_crops_hold_tumour(seed: int, count: int) -> None:
    _, regions = cut_crops([prepared()], crop_size=SIZE, count=count, generator=generator(seed))
    assert regions.flatten(1).any(dim=1).sum() >= count / 2
    assert regions[::2].flatten(1).any(dim=1).all()


def test_the_tumour_voxel_is_in_the_middle_unless_the_edge_forbids_it() -> None:
    middle = prepared(tumour_at=(12, 10, 8))
    _, regions = cut_crops([middle], crop_size=SIZE, count=2, generator=generator())
    assert regions[0, 0].nonzero().tolist() == [[4, 4, 3]]
    corner = prepared(tumour_at=(0, 19, 1))
    _, regions = cut_crops([corner], crop_size=SIZE, count=2, generator=generator())
    assert regions[0, 0].nonzero().tolist() == [[0, 7, 1]]


def test_other_crops_look_anywhere_in_the_head() -> None:
    source = generator()
    starts = set()
    for _ in range(300):
        images, _ = cut_crops([prepared()], crop_size=SIZE, count=2, generator=source)
        starts.add(int(images[1, 0, 0, 0, 0]))
    assert len(starts) > 150


def test_a_single_crop_is_tumour_about_half_of_the_time() -> None:
    source = generator()
    case = prepared(shape=(60, 60, 16))  # where a background crop rarely meets the tumour
    hits = sum(
        bool(cut_crops([case], crop_size=SIZE, count=1, generator=source)[1].any())
        for _ in range(400)
    )
    assert 160 < hits < 260


def test_all_cases_of_a_patient_are_used() -> None:
    cases = [prepared(), prepared(first_value=100_001), prepared(first_value=200_001)]
    source = generator()
    seen = [
        int(images[crop, 0, 0, 0, 0]) // 100_000
        for _ in range(100)
        for images in [cut_crops(cases, crop_size=SIZE, count=2, generator=source)[0]]
        for crop in range(2)
    ]
    assert [seen[0::2].count(case) > 15 for case in range(3)] == [True] * 3
    assert [seen[1::2].count(case) > 15 for case in range(3)] == [True] * 3


def test_tumour_crops_come_from_the_case_that_has_tumour() -> None:
    cases = [prepared(tumour_at=None), prepared()]
    for seed in range(20):
        _, regions = cut_crops(cases, crop_size=SIZE, count=2, generator=generator(seed))
        assert regions[0].any()


@pytest.mark.parametrize("head", [True, False])
def test_a_patient_without_tumour_still_gives_crops(head: bool) -> None:
    case = prepared(tumour_at=None, head=head)
    images, regions = cut_crops([case], crop_size=SIZE, count=2, generator=generator())
    assert not regions.any()
    assert (images[:, 0] > 0).all()


def test_a_case_that_is_all_tumour_still_gives_crops() -> None:
    case = prepared(head=False)
    _, regions = cut_crops([case], crop_size=SIZE, count=2, generator=generator())
    assert regions.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("shape", [(5, 20, 16), (5, 6, 3), (8, 8, 5)])
def test_a_case_smaller_than_the_crop_is_whole_and_padded_with_zeros(
    shape: tuple[int, int, int],
) -> None:
    case = prepared(shape=shape, tumour_at=(2, 3, 1))
    images, regions = cut_crops([case], crop_size=SIZE, count=1, generator=generator())
    assert images.shape == (1, 2, *SIZE)
    kept = torch.Size(min(have, want) for have, want in zip(shape, SIZE, strict=True)).numel()
    assert images[0, 0].count_nonzero() == kept
    assert regions.sum() == 1
    # What is missing is missing evenly on both sides.
    for axis, (have, want) in enumerate(zip(shape, SIZE, strict=True)):
        filled = images[0, 0].transpose(0, axis).flatten(1).any(dim=1).nonzero()[:, 0]
        before, after = int(filled[0]), want - 1 - int(filled[-1])
        assert after - before in (0, 1)
        assert before + after == max(want - have, 0)


def test_only_the_given_generator_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        return draw_crops([prepared()], crop_size=SIZE, count=2, generator=generator(seed))[0]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draw(5), first)
    assert not torch.equal(draw(6), first)


def test_a_generator_gives_other_crops_the_next_time() -> None:
    source = generator()
    first, second = (
        draw_crops([prepared()], crop_size=SIZE, count=2, generator=source)[0] for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_variation_mirrors_right_and_left_only_and_takes_the_regions_along() -> None:
    case = prepared()
    images, _ = cut_crops([case], crop_size=SIZE, count=2, generator=generator())
    image = images[:1].repeat(200, 1, 1, 1, 1)
    # Regions that mark where the brightness exceeds the crop's middle voxel.
    regions = (image[:, :1] > image[:, :1, 4:5, 4:5, 3:4]).to(torch.uint8)
    varied, moved = augment(image, regions, generator=generator(1))
    mirrored = 0
    for crop, region in zip(varied, moved, strict=True):
        flipped = bool(crop[0, 0, 0, 0] > crop[0, -1, 0, 0])
        mirrored += flipped
        back = crop.flip(1) if flipped else crop
        assert torch.equal(region.flip(1) if flipped else region, regions[0])
        # The order of brightness within a channel is the source's once more.
        assert torch.equal(back[0].flatten().argsort(), image[0, 0].flatten().argsort())
    assert 70 < mirrored < 130


def test_variation_is_mild_and_differs_by_crop_and_channel() -> None:
    flat = torch.stack([torch.zeros(100, 3, 2, 2, 2), torch.ones(100, 3, 2, 2, 2)], dim=-1)
    flat = flat.flatten(-2)  # zeros and ones along the last axis
    varied, _ = augment(flat, torch.zeros(100, 1, 2, 2, 4), generator=generator())
    shift, scale = varied[..., 0], varied[..., 1] - varied[..., 0]
    for amount, middle in ((shift, 0.0), (scale, 1.0)):
        amount = amount[:, :, 0, 0]
        assert (amount - middle).abs().max() <= 0.1 + 1e-6
        assert (amount - middle).abs().max() > 0.08
        assert len(amount.unique()) > 250


def test_variation_changes_neither_its_input_nor_the_case() -> None:
    case = prepared()
    before = case.image_CDHW.clone()
    images, regions = cut_crops([case], crop_size=SHAPE, count=2, generator=generator())
    kept = images.clone(), regions.clone()
    augment(images, regions, generator=generator(3))
    assert torch.equal(images, kept[0])
    assert torch.equal(regions, kept[1])
    images.zero_()
    assert torch.equal(case.image_CDHW, before)


@pytest.mark.parametrize(("cases", "count"), [([], 1), ([prepared()], 0)])
def test_no_case_or_no_crop_is_an_error(cases: list[PreparedCase], count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        draw_crops(cases, crop_size=SIZE, count=count, generator=generator())


def test_an_absent_channel_stays_empty_and_the_others_are_as_ever() -> None:
    def draw(**rules: object) -> torch.Tensor:
        settings = {"crop_size": SIZE, "count": 4, "generator": generator(2), **rules}
        return draw_crops([prepared()], **settings)[0]

    images = draw(absent=[1])
    assert not images[:, 1].any()
    assert torch.equal(images[:, 0], draw()[:, 0])


@pytest.mark.parametrize("absent", [[], [0]])
def test_dropout_empties_channels_but_never_all_that_are_there(absent: list[int]) -> None:
    values = prepared().image_CDHW[:1] + torch.arange(3.0)[:, None, None, None] + 5
    case = replace(prepared(), image_CDHW=values)
    images, _ = draw_crops(
        [case],
        crop_size=SIZE,
        count=600,
        generator=generator(),
        absent=absent,
        dropout=0.5,
    )
    kept = images.flatten(2).any(dim=2)
    assert kept.any(dim=1).all()
    present = [channel for channel in range(3) if channel not in absent]
    # Of the 2^n subsets with equal chance, the empty one counts as the full one.
    expected = 0.5 + 0.5 ** len(present)
    shares = kept[:, present].float().mean(dim=0)
    assert torch.allclose(shares, torch.full_like(shares, expected), atol=0.08)
    assert not kept[:, absent].any()


def test_without_dropout_no_randomness_is_used_for_it() -> None:
    source, other = generator(4), generator(4)
    draw_crops([prepared()], crop_size=SIZE, count=2, generator=source)
    draw_crops([prepared()], crop_size=SIZE, count=2, generator=other, absent=[1])
    assert torch.equal(source.get_state(), other.get_state())
