"""The training loss of one patient.

Its arguments are one patient's crops, so no term can depend on two patients: the batch Dice below
pools the crops of this patient, and only of this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate


def supervised_loss(heads: Sequence[Tensor], regions_KRDHW: Tensor) -> Tensor:
    """The mean of `patient_loss` over the heads of a network, each with the same weight.

    A head of lower resolution is brought to the truth by trilinear interpolation of its logits, not
    the truth to the head: a region of a few voxels can vanish from a mask that is made smaller, or
    turn into shares of a voxel, for which Dice has another minimum. So all heads are told the same.

    Args:
        heads: As `medfl.segmentation.heads.heads_of` gives them, at least one.
        regions_KRDHW: As for `patient_loss`.

    Returns:
        A scalar; for a single head exactly its `patient_loss`.

    Raises:
        ValueError: If a head has other crops or regions than the truth.
    """
    losses = [patient_loss(_enlarged(head, like=regions_KRDHW), regions_KRDHW) for head in heads]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def patient_loss(logits_KRDHW: Tensor, regions_KRDHW: Tensor) -> Tensor:
    """Soft Dice plus binary cross-entropy, averaged over regions.

    Dice is computed over all crops of the patient together (Milletari et al., arXiv 1606.04797,
    with a smoothing of 1e-5): a region that is absent from one crop then costs nothing by itself.

    Args:
        logits_KRDHW: The network's output for the patient's K crops.
        regions_KRDHW: Truth of the same shape, multi-hot, of any type.

    Returns:
        A scalar.

    Raises:
        ValueError: If the shapes differ.
    """
    truth = regions_KRDHW.to(logits_KRDHW.dtype)
    cross_entropy = binary_cross_entropy_with_logits(logits_KRDHW, truth)
    dice: Tensor = DiceLoss(sigmoid=True, batch=True)(logits_KRDHW, truth)
    return dice + cross_entropy


def _enlarged(head: Tensor, *, like: Tensor) -> Tensor:
    if head.shape[2:] == like.shape[2:]:
        return head
    return interpolate(head, size=like.shape[2:], mode="trilinear", align_corners=False)
