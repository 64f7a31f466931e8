"""Surface Dice and the weighted distance against the geometry of boxes, brute force, and Nikolov's.

The numbers of `REFERENCE` were computed once by google-deepmind/surface-distance, the authors' own.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from medfl.segmentation.metrics import surface_dices
from medfl.segmentation.surfaces import Surface, robust_hausdorff_mm, surface_dice, surface_of
from tests.segmentation.ball_masks import (
    PREDICTED_1,
    PREDICTED_2,
    TRUTH_1,
    TRUTH_2,
    UNEVEN,
    Mask,
    Spacing,
    balls,
)

# Spacing: surface Dice at 0.5, 1 and 2 mm, and the 95th percentile of distance.
REFERENCE: list[tuple[Mask, Mask, Spacing, tuple[float, float, float], float]] = [
    (TRUTH_1, PREDICTED_1, (1, 1, 1), (0.3705, 0.624226, 0.819843), 14.628739),
    (TRUTH_1, PREDICTED_1, UNEVEN, (0.529761, 0.685019, 0.868954), 14.696938),
    (TRUTH_2, PREDICTED_2, (1, 1, 1), (0.142459, 0.30704, 0.446266), 14.317821),
    (TRUTH_2, PREDICTED_2, UNEVEN, (0.221019, 0.31369, 0.484115), 15.724185),
]


@pytest.mark.parametrize(("truth", "predicted", "spacing", "dices", "hd95"), REFERENCE)
def test_scores_are_those_of_the_authors_own_program(
    truth: Mask, predicted: Mask, spacing: Spacing, dices: tuple[float, ...], hd95: float
) -> None:
    masks = (torch.from_numpy(predicted)[None], torch.from_numpy(truth)[None])
    for tolerance, expected in zip((0.5, 1.0, 2.0), dices, strict=True):
        (found,) = surface_dices(*masks, spacing_mm=spacing, tolerance_mm=tolerance)
        assert found == pytest.approx(expected, abs=1e-6)
    both = [surface_of(mask, spacing_mm=spacing) for mask in (truth, predicted)]
    found = robust_hausdorff_mm(*both, spacing_mm=spacing, percentile=95)
    assert found == pytest.approx(hd95, abs=1e-6)


def box(*, at: tuple[int, int, int], size: tuple[int, int, int]) -> Mask:
    mask = np.zeros((14, 14, 14), bool)
    mask[tuple(slice(start, start + length) for start, length in zip(at, size, strict=True))] = True
    return mask


def elements_of_a_box(
    *, at: tuple[int, int, int], size: tuple[int, int, int], spacing: Spacing
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places in mm and areas of a box's elements, by geometry.

    Inside a face an element is a rectangle; along an edge, the slope that cuts half a voxel off
    both faces; at a corner, the triangle between the middles of the three edges.
    """
    places, areas = [], []
    for steps in itertools.product(*(range(length + 1) for length in size)):
        ends = [axis for axis in range(3) if steps[axis] in (0, size[axis])]
        along = [spacing[axis] for axis in range(3) if axis not in ends]
        half = [spacing[axis] / 2 for axis in ends]
        if not ends:
            continue
        if len(ends) == 3:
            a, b, c = half
            area = math.sqrt((a * b) ** 2 + (b * c) ** 2 + (a * c) ** 2) / 2
        else:
            area = math.prod(along) * (math.hypot(*half) if len(ends) == 2 else 1)
        places.append(
            [(start + step) * mm for start, step, mm in zip(at, steps, spacing, strict=True)]
        )
        areas.append(area)
    return np.array(places), np.array(areas)


@settings(max_examples=40)
@given(
    sizes=st.tuples(*[st.tuples(*[st.integers(1, 6)] * 3)] * 2),
    places=st.tuples(*[st.tuples(*[st.integers(0, 8)] * 3)] * 2),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 3.0])] * 3),
    tolerance=st.sampled_from([0.0, 0.9, 2.0, 5.0]),
)
def test_surface_dice_of_boxes_is_that_of_their_geometry(
    sizes: tuple[tuple[int, int, int], ...],
    places: tuple[tuple[int, int, int], ...],
    spacing: Spacing,
    tolerance: float,
) -> None:
    pairs = list(zip(places, sizes, strict=True))
    (points_1, areas_1), (points_2, areas_2) = (
        elements_of_a_box(at=at, size=size, spacing=spacing) for at, size in pairs
    )
    distance = cdist(points_1, points_2)
    assume(np.abs(distance - tolerance).min() > 1e-3 or tolerance == 0)
    near_1, near_2 = (distance.min(axis=axis) <= tolerance + 1e-9 for axis in (1, 0))
    expected = (areas_1[near_1].sum() + areas_2[near_2].sum()) / (areas_1.sum() + areas_2.sum())
    both = [surface_of(box(at=at, size=size), spacing_mm=spacing) for at, size in pairs]
    found = surface_dice(*both, spacing_mm=spacing, tolerance_mm=tolerance)
    assert found == pytest.approx(expected, abs=1e-6)
    assert both[0].areas_mm2.sum() == pytest.approx(areas_1.sum())


def test_the_area_of_a_ball_is_nearly_that_of_the_ball() -> None:
    surface = surface_of(balls(((20, 22, 18), 15)), spacing_mm=(1, 1, 1))
    assert surface.areas_mm2.sum() == pytest.approx(4 * math.pi * 15**2, rel=0.12)


def brute_force(first: Surface, second: Surface, spacing: Spacing) -> float:
    """The smallest distance within which 95 % of the area lies, found by trying all of them."""
    places = [surface.corners * np.array(spacing) for surface in (first, second)]
    distance = cdist(*places)
    worst = 0.0
    for surface, nearest in ((first, distance.min(axis=1)), (second, distance.min(axis=0))):
        total = surface.areas_mm2.sum()
        enough = [
            d for d in nearest if surface.areas_mm2[nearest <= d].sum() >= (0.95 - 2e-7) * total
        ]
        worst = max(worst, min(enough))
    return worst


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.01, 0.3, 0.9]),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
)
def test_distance_equals_brute_force_whether_surfaces_are_sparse_or_dense(
    seed: int, density: float, spacing: Spacing
) -> None:
    masks = np.random.default_rng(seed).random((2, 9, 10, 8)) < density
    assume(masks.any(axis=(1, 2, 3)).all())
    both = [surface_of(mask, spacing_mm=spacing) for mask in masks]
    found = robust_hausdorff_mm(*both, spacing_mm=spacing, percentile=95)
    assert found == pytest.approx(brute_force(both[0], both[1], spacing))


def test_a_spacing_that_is_one_millimetre_but_for_rounding_changes_nothing() -> None:
    truth, moved = (box(at=(at, 4, 4), size=(5, 5, 5)) for at in (4, 5))
    for millimetres in (1.0, 1.0 + 3e-7, 1.0 - 3e-7):
        spacing = (millimetres,) * 3
        both = [surface_of(mask, spacing_mm=spacing) for mask in (truth, moved)]
        assert surface_dice(*both, spacing_mm=spacing, tolerance_mm=1.0) == pytest.approx(1.0)


def test_elements_are_taken_apart_by_their_component() -> None:
    labels = np.zeros((14, 14, 14), np.int32)
    labels[box(at=(1, 1, 1), size=(3, 4, 2))] = 7
    labels[box(at=(8, 8, 8), size=(2, 2, 2))] = 3
    labels[box(at=(1, 9, 1), size=(1, 1, 1))] = 5
    surface = surface_of(labels, spacing_mm=UNEVEN)
    alone = surface_of(labels == 7, spacing_mm=UNEVEN)
    part = surface.of([7])
    assert set(part.owners) == {7}
    assert {tuple(row) for row in part.corners} == {tuple(row) for row in alone.corners}
    assert part.areas_mm2.sum() == pytest.approx(alone.areas_mm2.sum())
    assert set(surface.of([3, 7]).owners) == {3, 7}


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)]
)
def test_absent_regions_are_perfect_together_and_the_worst_alone(
    predicted: int, truth: int, expected: float
) -> None:
    masks = (torch.full((1, 4, 4, 4), value) for value in (predicted, truth))
    assert surface_dices(*masks, spacing_mm=(1, 1, 1), tolerance_mm=1.0) == (expected,)
