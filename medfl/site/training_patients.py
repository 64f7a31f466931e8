"""A site's patients as the engine draws them: whose crops, and the loss over them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import nn

from medfl.config import StudyConfig
from medfl.data.crops import draw_crops
from medfl.data.patient_store import PatientStore
from medfl.privacy.patients import Patients
from medfl.segmentation.heads import heads_of
from medfl.segmentation.losses import supervised_loss


def training_patients(
    store: PatientStore,
    names: Sequence[str],
    study: StudyConfig,
    network: nn.Module,
    *,
    site: str,
    round_number: int,
    device: str,
) -> Patients:
    """The patients of a store under the network's loss.

    Args:
        store: Those who take part in the round.
        names: Their pseudonyms, in the store's order.
        study: Its crops.
        network: The network that is trained; on `device`.
        site: Name of the site.
        round_number: Chooses the crops, with study, site and pseudonym; which ones is no secret.
        device: Where the losses are computed.
    """

    def loss_of(index: int, generator: torch.Generator) -> torch.Tensor:
        image_KCDHW, regions_KRDHW = draw_crops(
            store.prepared(index),
            crop_size=study.input.crop_size,
            count=study.input.crops_per_patient,
            generator=generator,
            absent=store.frame.absent_channels,
            dropout=study.input.modality_dropout,
        )
        heads = heads_of(network, network(image_KCDHW.to(device)))
        return supervised_loss(heads, regions_KRDHW.to(device))

    return Patients(
        names=tuple(names),
        stream=json.dumps([study.id, study.seed, site, round_number]),
        loss_of=loss_of,
    )
