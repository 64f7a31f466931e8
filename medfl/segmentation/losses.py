"""The training loss of one patient.

Its arguments are one patient's crops, so no term can depend on two patients: the batch Dice below
pools the crops of this patient, and only of this one.
"""

from __future__ import annotations

from monai.losses import DiceLoss
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


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
