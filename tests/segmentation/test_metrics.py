"""Dice and HD95 against brute force, and the convention for absent regions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from torch import Tensor

from medfl.config.site import Region
from medfl.segmentation.metrics import RegionScore, score

REGIONS: tuple[Region, ...] = ("TC", "WT", "ET")
SHAPE = (6, 7, 8)


def cube(*, at: tuple[int, int, int], edge: int, shape: tuple[int, ...] = (12, 12, 12)) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(start, start + edge) for start in at)] = True
    return mask


def one(predicted: Tensor, truth: Tensor, spacing: tuple[float, ...] = (1, 1, 1)) -> RegionScore:
    (result,) = score(predicted[None], truth[None], regions=("WT",), spacing_mm=spacing)
    return result


def surface_mm(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    return np.argwhere(mask & ~binary_erosion(mask)) * np.array(spacing)


def brute_force_hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
    distance = cdist(surface_mm(a, spacing), surface_mm(b, spacing))
    return max(float(np.percentile(distance.min(axis=axis), 95)) for axis in (0, 1))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.02, 0.3, 0.9]),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
)
def test_scores_equal_brute_force_on_any_masks(
    seed: int, density: float, spacing: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.random((2, *SHAPE)) < density
    assume(predicted.any() and truth.any())
    found = one(torch.from_numpy(predicted), torch.from_numpy(truth), spacing)
    overlap = np.logical_and(predicted, truth).sum()
    assert found.dice == pytest.approx(2 * overlap / (predicted.sum() + truth.sum()))
    assert found.hd95_mm == pytest.approx(brute_force_hd95(predicted, truth, spacing), rel=1e-5)


def test_shift_of_a_cube_is_measured_in_millimetres_of_its_axis() -> None:
    truth = cube(at=(2, 2, 2), edge=6)
    for axis, millimetres in enumerate((1.0, 2.0, 0.5)):
        moved = torch.roll(truth, 2, dims=axis)
        found = one(moved, truth, (1.0, 2.0, 0.5))
        assert found.hd95_mm == pytest.approx(2 * millimetres)
        assert found.dice == pytest.approx(4 / 6)


def test_perfect_segmentation_scores_one_and_zero() -> None:
    truth = cube(at=(3, 3, 3), edge=4)
    assert one(truth, truth) == RegionScore(region="WT", dice=1.0, hd95_mm=0.0)


def test_region_absent_from_both_is_perfect() -> None:
    nothing = torch.zeros(12, 12, 12, dtype=torch.bool)
    assert one(nothing, nothing) == RegionScore(region="WT", dice=1.0, hd95_mm=0.0)


@pytest.mark.parametrize("missed", [True, False], ids=["missed", "invented"])
def test_region_absent_from_one_is_the_worst_with_the_image_diagonal(missed: bool) -> None:
    something = cube(at=(0, 0, 0), edge=2, shape=(10, 20, 30))
    nothing = torch.zeros_like(something)
    pair = (nothing, something) if missed else (something, nothing)
    found = one(*pair, spacing=(1.0, 2.0, 0.5))
    assert found.dice == 0
    assert found.hd95_mm == pytest.approx(math.sqrt(10**2 + 40**2 + 15**2))


def test_regions_are_scored_apart_and_in_order() -> None:
    truth = torch.stack([cube(at=(3, 3, 3), edge=edge) for edge in (4, 6, 2)])
    predicted = torch.stack([truth[0], torch.zeros_like(truth[1]), truth[2]])
    found = score(predicted, truth, regions=REGIONS, spacing_mm=(1, 1, 1))
    assert [entry.region for entry in found] == list(REGIONS)
    assert [entry.dice for entry in found] == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_masks_of_any_number_type_score_like_boolean_ones(dtype: torch.dtype) -> None:
    predicted, truth = cube(at=(2, 2, 2), edge=5), cube(at=(3, 2, 2), edge=5)
    assert one(predicted.to(dtype), truth.to(dtype)) == one(predicted, truth)


def test_distance_can_be_left_out() -> None:
    truth = cube(at=(3, 3, 3), edge=4)[None]
    (found,) = score(truth, truth, regions=("WT",), spacing_mm=(1, 1, 1), with_hd95=False)
    assert found == RegionScore(region="WT", dice=1.0, hd95_mm=None)


def test_probabilities_are_refused() -> None:
    truth = cube(at=(3, 3, 3), edge=4)
    with pytest.raises(ValueError, match="zeros and ones"):
        one(truth * 0.7, truth)


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [((3, 4, 4, 4), (3, 4, 4, 5)), ((2, 4, 4, 4), (2, 4, 4, 4)), ((3, 4, 4), (3, 4, 4))],
)
def test_masks_of_other_shapes_are_refused(
    predicted: tuple[int, ...], truth: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="shape"):
        score(torch.zeros(predicted), torch.zeros(truth), regions=REGIONS, spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0)])
def test_spacing_that_is_no_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    truth = cube(at=(3, 3, 3), edge=4)
    with pytest.raises(ValueError, match="spacings"):
        one(truth, truth, spacing)
