"""Ordinary training without noise: on patients of nobody, or for a model that stays at home.

What comes of a hospital's patients may not leave it. It is in one place so that a public starting
point and a hospital's own model are trained alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medfl.config.site import Size
from medfl.data.crops import draw_crops
from medfl.data.patient_store import PatientStore
from medfl.segmentation.heads import heads_of
from medfl.segmentation.losses import supervised_loss

BATCH_PATIENTS = 4

Advance = Callable[[int, int], None]
"""Told the work done and the work in total."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        steps: Optimizer steps of AdamW under a one-cycle learning rate, `BATCH_PATIENTS` patients
            each, drawn with replacement.
        learning_rate: The highest of the cycle.
        crop_size: Voxels of one crop.
        crops_per_patient: Crops of one patient in one step.
        dropout: Probability that a channel of a crop is emptied.
        seed: Of patients and crops.
    """

    steps: int
    learning_rate: float
    crop_size: Size
    crops_per_patient: int
    dropout: float = 0.0
    seed: int = 0


def train_plainly(
    network: nn.Module,
    store: PatientStore,
    *,
    among: Sequence[int],
    recipe: Recipe,
    device: str = "cpu",
    advance: Advance,
) -> None:
    """Train a network in place.

    Args:
        network: On `device`.
        store: Patients.
        among: Numbers of the patients in the store that may be drawn.
        recipe: How.
        device: Where the network is.
        advance: Progress of the steps.

    Raises:
        DataError: If a patient cannot be prepared.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    network.train()
    for step in range(recipe.steps):
        drawn = [
            draw_crops(
                store.prepared(among[place]),
                crop_size=recipe.crop_size,
                count=recipe.crops_per_patient,
                generator=generator,
                absent=store.frame.absent_channels,
                dropout=recipe.dropout,
            )
            for place in torch.randint(len(among), (BATCH_PATIENTS,), generator=generator).tolist()
        ]
        # All in one pass: alone, a crop takes torch's convolution several times as long on the CPU.
        heads = heads_of(network, network(torch.cat([images for images, _ in drawn]).to(device)))
        by_head = [head.split(recipe.crops_per_patient) for head in heads]
        losses = [
            supervised_loss(of_one, regions.to(device))
            for of_one, (_, regions) in zip(zip(*by_head, strict=True), drawn, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()
        advance(step + 1, recipe.steps)
