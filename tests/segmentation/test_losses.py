"""The patient loss against the formula written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.segmentation.losses import patient_loss, supervised_loss

SMOOTHING = 1e-5


def expected_loss(logits: np.ndarray, truth: np.ndarray) -> float:
    probability = 1 / (1 + np.exp(-logits))
    losses = []
    for region in range(logits.shape[1]):
        p, t = probability[:, region], truth[:, region]
        overlap, total = (p * t).sum(), p.sum() + t.sum()
        losses.append(1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING))
    entropy = -(truth * np.log(probability) + (1 - truth) * np.log(1 - probability))
    return float(np.mean(losses) + entropy.mean())


@settings(max_examples=25)
@given(
    crops=st.integers(1, 4),
    regions=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_dice_over_all_crops_plus_cross_entropy(
    crops: int, regions: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(crops, regions, 3, 4, 5))
    truth = (rng.random(logits.shape) < density).astype(np.uint8)
    loss = patient_loss(torch.from_numpy(logits), torch.from_numpy(truth))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected_loss(logits, truth.astype(float)), rel=1e-6)


def test_crops_of_a_patient_are_pooled_before_dice() -> None:
    # Region absent from the second crop: pooled Dice is near perfect, the mean over crops is not.
    logits = torch.full((2, 1, 4, 4, 4), -20.0)
    logits[0] = 20.0
    truth = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    truth[0] = True
    assert float(patient_loss(logits, truth)) == pytest.approx(0, abs=1e-4)


def test_confident_and_wrong_costs_more_than_undecided() -> None:
    truth = torch.ones(2, 3, 4, 4, 4)
    undecided = patient_loss(torch.zeros(2, 3, 4, 4, 4), truth)
    wrong = patient_loss(torch.full((2, 3, 4, 4, 4), -10.0), truth)
    assert float(wrong) > float(undecided) > float(patient_loss(20 * truth, truth))


def test_gradient_is_finite_where_every_region_is_absent() -> None:
    logits = torch.zeros(2, 3, 4, 4, 4, requires_grad=True)
    patient_loss(logits, torch.zeros(2, 3, 4, 4, 4, dtype=torch.uint8)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_truth_of_another_shape_is_refused_instead_of_broadcast() -> None:
    with pytest.raises(ValueError, match="size"):
        patient_loss(torch.zeros(2, 3, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4))


def test_a_single_head_has_exactly_the_loss_of_the_patient() -> None:
    logits = torch.randn(2, 3, 4, 4, 4)
    truth = torch.randint(0, 2, logits.shape)
    assert float(supervised_loss([logits], truth)) == float(patient_loss(logits, truth))


def test_every_head_weighs_the_same() -> None:
    heads = [scale * torch.randn(2, 3, 4, 4, 4) for scale in (0.1, 1.0, 10.0)]
    truth = torch.randint(0, 2, heads[0].shape)
    expected = sum(float(patient_loss(head, truth)) for head in heads) / 3
    assert float(supervised_loss(heads, truth)) == pytest.approx(expected, rel=1e-6)


def test_a_smaller_head_is_told_of_regions_that_its_voxels_could_not_show() -> None:
    """One voxel of 64 in a mask of 4 x 4 x 4 has no nearest voxel among 2 x 2 x 2."""
    truth = torch.zeros(1, 1, 4, 4, 4)
    truth[..., 1, 1, 1] = 1
    coarse = torch.full((1, 1, 2, 2, 2), -5.0, requires_grad=True)
    loss = supervised_loss([coarse], truth)
    loss.backward()
    assert coarse.grad is not None
    assert coarse.grad[0, 0, 0, 0, 0] < 0
    assert coarse.grad[0, 0, 0, 0, 0] < 5 * coarse.grad[0, 0, 1, 1, 1]
    constant = patient_loss(torch.full((1, 1, 4, 4, 4), -5.0), truth)
    assert float(loss.detach()) == pytest.approx(float(constant), rel=1e-6)


def test_a_head_of_other_crops_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Target size .* must be the same"):
        supervised_loss([torch.zeros(1, 3, 2, 2, 2)], torch.zeros(2, 3, 4, 4, 4))
