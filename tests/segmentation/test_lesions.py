"""Lesion-wise scores: by hand, against an oracle of another build, and against the challenge's own.

The numbers of `REFERENCE` were computed once by the challenge's program of 2023
(rachitsaluja/BraTS-2023-Metrics).
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from medfl.segmentation.lesions import GLIOMA, LesionRule, LesionScore, score_lesions
from medfl.segmentation.surfaces import surface_of
from tests.segmentation.ball_masks import (
    PREDICTED_1,
    PREDICTED_2,
    TRUTH_1,
    TRUTH_2,
    UNEVEN,
    Mask,
    Spacing,
)

EVEN: Spacing = (1.0, 1.0, 1.0)
MENINGIOMA = LesionRule(dilation_voxels=1, above_mm3=50)
METASTASES = LesionRule(dilation_voxels=1, above_mm3=2)

# Dice, distance, and lesions found, missed and false.
REFERENCE: list[tuple[Mask, Mask, Spacing, LesionRule, tuple[float, float, int, int, int]]] = [
    (TRUTH_1, PREDICTED_1, EVEN, GLIOMA, (0.418291, 150.930056, 3, 1, 1)),
    (TRUTH_1, PREDICTED_1, EVEN, METASTASES, (0.396195, 125.941714, 4, 1, 1)),
    (TRUTH_1, PREDICTED_1, UNEVEN, GLIOMA, (0.418291, 150.838516, 3, 1, 1)),
    (TRUTH_1, PREDICTED_1, UNEVEN, METASTASES, (0.396195, 126.032097, 4, 1, 1)),
    (TRUTH_2, PREDICTED_2, EVEN, GLIOMA, (0.156166, 128.002892, 2, 0, 1)),
    (TRUTH_2, PREDICTED_2, EVEN, MENINGIOMA, (0.120277, 132.412148, 2, 0, 1)),
    (TRUTH_2, PREDICTED_2, EVEN, METASTASES, (0.143759, 68.236831, 5, 0, 1)),
    (TRUTH_2, PREDICTED_2, UNEVEN, GLIOMA, (0.156166, 128.306722, 2, 0, 1)),
    (TRUTH_2, PREDICTED_2, UNEVEN, MENINGIOMA, (0.120277, 138.831702, 2, 0, 1)),
    (TRUTH_2, PREDICTED_2, UNEVEN, METASTASES, (0.143759, 73.099143, 5, 0, 1)),
]


def one(
    predicted: Mask, truth: Mask, *, spacing: Spacing = EVEN, rule: LesionRule = GLIOMA
) -> LesionScore:
    (result,) = score_lesions(
        torch.from_numpy(predicted)[None],
        torch.from_numpy(truth)[None],
        regions=("ET",),
        spacing_mm=spacing,
        rule=rule,
    )
    return result


def counts(found: LesionScore) -> tuple[int, int, int]:
    return found.found, found.missed, found.false


def cubes(*placed: tuple[tuple[int, int, int], int]) -> Mask:
    """Cubes by lowest corner and edge."""
    mask = np.zeros((30, 40, 50), bool)
    for corner, edge in placed:
        mask[tuple(slice(start, start + edge) for start in corner)] = True
    return mask


A, B, C = ((2, 2, 2), 4), ((2, 20, 20), 4), ((20, 2, 40), 5)


@pytest.mark.parametrize(("truth", "predicted", "spacing", "rule", "expected"), REFERENCE)
def test_scores_are_those_of_the_challenges_own_program(
    truth: Mask,
    predicted: Mask,
    spacing: Spacing,
    rule: LesionRule,
    expected: tuple[float, float, int, int, int],
) -> None:
    found = one(predicted, truth, spacing=spacing, rule=rule)
    assert (found.dice, found.hd95_mm) == pytest.approx(expected[:2], abs=1e-5)
    assert counts(found) == expected[2:]


def test_a_missed_lesion_counts_like_a_found_one_however_small() -> None:
    found = one(cubes(A), cubes(A, B))
    assert found == LesionScore(region="ET", dice=0.5, hd95_mm=374 / 2, found=1, missed=1, false=0)


def test_a_lesion_that_is_not_there_counts_as_a_missed_one_does() -> None:
    found = one(cubes(A, B, C), cubes(A))
    assert counts(found) == (1, 0, 2)
    assert found.dice == pytest.approx(1 / 3)
    assert found.hd95_mm == pytest.approx(2 * 374 / 3)


def test_nothing_in_both_is_perfect_and_something_in_one_the_worst() -> None:
    empty = cubes()
    perfect = LesionScore(region="ET", dice=1, hd95_mm=0, found=0, missed=0, false=0)
    assert one(empty, empty) == perfect
    missed = LesionScore(region="ET", dice=0, hd95_mm=374, found=0, missed=2, false=0)
    assert one(empty, cubes(A, B)) == missed
    invented = LesionScore(region="ET", dice=0, hd95_mm=374, found=0, missed=0, false=2)
    assert one(cubes(A, B), empty) == invented


def test_lesions_are_left_out_up_to_the_volume_and_what_was_found_there_is_not_false() -> None:
    fifty = cubes(B)
    fifty[2:6, 20:24, 20:24].flat[50:] = False
    assert fifty.sum() == 50
    alone = one(cubes(), fifty)
    assert (alone.dice, alone.hd95_mm, counts(alone)) == (1.0, 0.0, (0, 0, 0))
    for predicted in (cubes(A), cubes(A, B)):
        found = one(predicted, cubes(A) | fifty)
        assert (found.dice, counts(found)) == (1.0, (1, 0, 0))
    more = fifty.copy()
    more[6, 20, 20] = True
    assert counts(one(cubes(A), cubes(A) | more)) == (1, 1, 0)


def test_a_volume_is_compared_in_cubic_millimetres_whatever_an_affine_has_rounded() -> None:
    block = cubes(((2, 2, 2), 5))
    block[2:7, 2:7, 4:7] = False
    assert block.sum() == 50
    for millimetres, missed in ((1.0, 0), (1 + 3e-7, 0), (1.01, 1), (0.9, 0)):
        assert one(cubes(), block, spacing=(millimetres,) * 3).missed == missed


@pytest.mark.parametrize(("dilation", "gap"), [(1, 2), (2, 4), (3, 6)])
def test_parts_whose_dilated_forms_touch_are_one_lesion(dilation: int, gap: int) -> None:
    rule = LesionRule(dilation_voxels=dilation, above_mm3=0)
    for more, lesions in ((0, 1), (1, 2)):
        parts = cubes(((5, 5, 5), 4), ((5, 5, 9 + gap + more), 4))
        assert one(cubes(), parts, rule=rule).missed == lesions


def test_a_prediction_beside_a_lesion_belongs_to_it_while_the_dilated_form_reaches_it() -> None:
    for away, expected in ((3, (1, 0, 0)), (4, (0, 1, 1))):
        found = one(cubes(((2, 2, 5 + away), 4)), cubes(A))
        assert counts(found) == expected
        assert found.dice == 0


def test_one_component_across_two_lesions_belongs_to_both() -> None:
    truth = cubes(((5, 5, 5), 4), ((5, 5, 20), 4))
    bridge = cubes()
    bridge[5:9, 5:9, 5:24] = True
    found = one(bridge, truth)
    assert counts(found) == (2, 0, 0)
    assert found.dice == pytest.approx(2 * 64 / (64 + 304))


def test_components_that_touch_by_a_corner_are_one() -> None:
    predicted = cubes(((5, 5, 5), 4), ((9, 9, 9), 4))
    assert counts(one(predicted, cubes())) == (0, 0, 1)


def test_an_unlike_spacing_is_measured_along_its_axis() -> None:
    moved = cubes(((2, 2, 3), 4))
    found = one(moved, cubes(A), spacing=(1.0, 1.0, 2.5))
    assert found.hd95_mm == pytest.approx(2.5)
    assert found.dice == pytest.approx(0.75)


# The oracle: voxels as points, and nothing of images.


def joined(points: NDArray[np.int64]) -> NDArray[np.int32]:
    """Number of the part that each voxel belongs to, over faces, edges and corners."""
    pairs = KDTree(points).query_pairs(1.5, p=math.inf, output_type="ndarray")
    ones = np.ones(len(pairs))
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels


def reached(points: NDArray[np.int64], others: NDArray[np.int64], steps: int) -> NDArray[np.bool_]:
    """Which of the others lie within so many steps over faces and edges."""
    away = np.abs(points[:, None] - others[None])
    near = (away.max(axis=2) <= steps) & (away.sum(axis=2) <= 2 * steps)
    return near.any(axis=0)


def hd95(lesion: Mask, parts: Mask, spacing: Spacing) -> float:
    both = [surface_of(mask, spacing_mm=spacing) for mask in (lesion, parts)]
    distance = cdist(*(surface.corners * np.array(spacing) for surface in both))
    largest = []
    for surface, nearest in zip(both, (distance.min(axis=1), distance.min(axis=0)), strict=True):
        order = np.argsort(nearest)
        share = np.cumsum(surface.areas_mm2[order]) / surface.areas_mm2.sum()
        largest.append(nearest[order][np.flatnonzero(share >= 0.95 - 2e-7)[0]])
    return float(max(largest))


def oracle(predicted: Mask, truth: Mask, spacing: Spacing, rule: LesionRule) -> tuple[float, float]:
    everywhere = np.argwhere(np.ones_like(truth))
    truth_points, predicted_points = np.argwhere(truth), np.argwhere(predicted)
    dilated = everywhere[reached(truth_points, everywhere, rule.dilation_voxels)]
    zone_of = dict(zip(map(tuple, dilated), joined(dilated), strict=True))
    part_of = joined(predicted_points) if len(predicted_points) else np.zeros(0, np.int32)
    dices, distances, matched = [], [], set()
    for zone in set(zone_of.values()):
        lesion = np.array([p for p in truth_points if zone_of[tuple(p)] == zone])
        touched = {
            part
            for point, part in zip(predicted_points, part_of, strict=True)
            if zone_of.get(tuple(point)) == zone
        }
        matched |= touched
        if len(lesion) * math.prod(spacing) <= rule.above_mm3:
            continue
        if not touched:
            dices.append(0.0)
            distances.append(374.0)
            continue
        mine = predicted_points[np.isin(part_of, list(touched))]
        images = np.zeros((2, *truth.shape), bool)
        images[0][tuple(lesion.T)] = images[1][tuple(mine.T)] = True
        dices.append(2 * (images[0] & images[1]).sum() / images.sum())
        distances.append(hd95(images[0], images[1], spacing))
    false = len(set(part_of) - matched)
    total = len(dices) + false
    if not total:
        return 1.0, 0.0
    return sum(dices) / total, (sum(distances) + 374 * false) / total


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.tuples(*[st.sampled_from([0.0, 0.004, 0.02])] * 2),
    spacing=st.sampled_from([EVEN, UNEVEN, (2.5, 0.7, 1.0)]),
    rule=st.sampled_from(
        [
            METASTASES,
            LesionRule(dilation_voxels=2, above_mm3=5),
            LesionRule(dilation_voxels=3, above_mm3=0),
        ]
    ),
)
def test_scores_equal_an_oracle_that_knows_points_only(
    seed: int, density: tuple[float, float], spacing: Spacing, rule: LesionRule
) -> None:
    rng = np.random.default_rng(seed)
    shape = (14, 12, 13)
    predicted, truth = (rng.random(shape) < chance for chance in density)
    for mask in (predicted, truth):  # lesions of several voxels
        mask[1:] |= mask[:-1]
        mask[:, :, :-1] |= mask[:, :, 1:]
    found = one(predicted, truth, spacing=spacing, rule=rule)
    expected = oracle(predicted, truth, spacing, rule)
    assert (found.dice, found.hd95_mm) == pytest.approx(expected, abs=1e-4)


def test_a_distance_can_be_left_out() -> None:
    truth = torch.from_numpy(cubes(A))[None]
    (found,) = score_lesions(truth, truth, regions=("WT",), spacing_mm=EVEN, with_hd95=False)
    assert (found.dice, found.hd95_mm) == (1.0, None)


def test_regions_are_scored_apart_and_in_order() -> None:
    truth = torch.from_numpy(np.stack([cubes(A), cubes(A, B), cubes()]))
    predicted = torch.stack([truth[0], truth[0], truth[0]]).float()
    found = score_lesions(predicted, truth, regions=("TC", "WT", "ET"), spacing_mm=EVEN)
    assert [(one.region, one.dice) for one in found] == [("TC", 1.0), ("WT", 0.5), ("ET", 0.0)]


def test_what_cannot_be_compared_is_refused() -> None:
    truth = torch.from_numpy(cubes(A))[None]
    for predicted, spacing, rule in (
        (truth * 0.5, EVEN, "zeros and ones"),
        (truth * float("nan"), EVEN, "zeros and ones"),
        (truth[:, 1:], EVEN, "shape"),
        (truth, (1.0, math.inf, 1.0), "spacings"),
    ):
        with pytest.raises(ValueError, match=rule):
            score_lesions(predicted, truth, regions=("WT",), spacing_mm=spacing)
    for wrong in ({"dilation_voxels": 0}, {"above_mm3": -1.0}, {"above_mm3": math.nan}):
        with pytest.raises(ValueError, match=f"Expected .*{next(iter(wrong))}"):
            LesionRule(**{"dilation_voxels": 3, "above_mm3": 50.0, **wrong})  # type: ignore[arg-type]


@pytest.mark.slow
def test_hundreds_of_specks_in_a_whole_image_take_seconds() -> None:
    rng = np.random.default_rng(5)
    shape = (240, 240, 155)
    truth, predicted = np.zeros((2, *shape), bool)
    for centre in rng.integers(5, 150, (150, 3)):
        truth[tuple(slice(at, at + 4) for at in centre)] = True
    for centre in rng.integers(5, 150, (1000, 3)):
        predicted[tuple(slice(at, at + 2) for at in centre)] = True
    truth[60:120, 60:120, 60:120] = predicted[62:120, 60:125, 60:120] = True
    start = time.perf_counter()
    found = one(predicted, truth)
    assert found.false > 100
    assert time.perf_counter() - start < 60  # 2 s on an idle core
