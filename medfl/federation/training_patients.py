"""`TrainingPatients`: a site's patients as the engine draws them, how many and the loss of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medfl.config import StudyConfig
from medfl.data.crops import draw_crops
from medfl.data.transforms import PatientStore
from medfl.privacy.engine import PatientLoss
from medfl.segmentation.losses import patient_loss


@dataclass(frozen=True, kw_only=True)
class TrainingPatients:
    """The patients of one round at one site.

    Attributes:
        count: Patients that can be drawn.
        loss_of: Loss of one of them.
    """

    count: int
    loss_of: PatientLoss


def training_patients(
    store: PatientStore,
    present: Sequence[int],
    study: StudyConfig,
    network: nn.Module,
    *,
    site: str,
    round_number: int,
    device: str,
) -> TrainingPatients:
    """Some patients of a store under the network's loss.

    Args:
        store: The site's training patients.
        present: Those who take part, by their index in the store.
        study: Its crops.
        network: The network that is trained; on `device`.
        site: Name of the site.
        round_number: Chooses the crops, with study and site; which ones is no secret.
        device: Where the losses are computed.
    """
    seed = public_seed("crops", study, site=site, round_number=round_number)
    generator = torch.Generator().manual_seed(seed)
    absent = [study.input.modalities.index(name) for name in store.frame.absent]

    def loss_of(index: int) -> torch.Tensor:
        image_KCDHW, regions_KRDHW = draw_crops(
            store.prepared(present[index]),
            crop_size=study.input.crop_size,
            count=study.input.crops_per_patient,
            generator=generator,
            absent=absent,
            dropout=study.input.modality_dropout,
        )
        return patient_loss(network(image_KCDHW.to(device)), regions_KRDHW.to(device))

    return TrainingPatients(count=len(present), loss_of=loss_of)


def public_seed(purpose: str, study: StudyConfig, *, site: str, round_number: int) -> int:
    """A seed that anyone can derive; never of noise or of patient draws."""
    text = f"{purpose}/{study.seed}/{site}/{round_number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
