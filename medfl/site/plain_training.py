"""Ordinary training without noise: on patients of nobody, or for a model that stays at home.

What comes of a hospital's patients may not leave it. It is in one place so that a public starting
point and a hospital's own model are trained alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from medfl.config.site import Size
from medfl.data.crops import draw_crops
from medfl.data.randomise import randomise
from medfl.data.transforms import PreparedCase
from medfl.segmentation.heads import heads_of
from medfl.segmentation.losses import supervised_loss

BATCH_PATIENTS = 4

Advance = Callable[[int, int], None]
"""Told the work done and the work in total."""


class PreparedPatients(Protocol):
    """Patients by number, of one site such as those of a `PatientStore`, or of several."""

    def prepared(self, index: int) -> tuple[PreparedCase, ...]:
        """All cases of patient number `index`."""

    def absent_channels(self, index: int) -> tuple[int, ...]:
        """Channels that patient number `index` does not have."""


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
        randomise: Whether crops are varied far beyond what scanners show.
        ema_decay: Of the exponential average of the weights over the steps, which is the outcome;
            0 takes the last weights. An average of few steps forgets faster, so that it does not
            remember how training began.
    """

    steps: int
    learning_rate: float
    crop_size: Size
    crops_per_patient: int
    dropout: float = 0.0
    seed: int = 0
    randomise: bool = False
    ema_decay: float = 0.0


def train_plainly(
    network: nn.Module,
    store: PreparedPatients,
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
    # torch's convolutions on the CPU take a fifth less time with channels last.
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = [value.detach().clone() for value in network.parameters()]
    network.train()
    for step in range(recipe.steps):
        drawn = [
            _crops(store, among[place], recipe=recipe, generator=generator)
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
        _average(average, network, decay=recipe.ema_decay, steps=step + 1)
        advance(step + 1, recipe.steps)
    with torch.no_grad():
        for value, mean in zip(network.parameters(), average, strict=True):
            value.copy_(mean)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _crops(
    store: PreparedPatients, patient: int, *, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """float32 image_KCDHW and uint8 regions_KRDHW of one patient."""
    images, regions = draw_crops(
        store.prepared(patient),
        crop_size=recipe.crop_size,
        count=recipe.crops_per_patient,
        generator=generator,
        absent=store.absent_channels(patient),
        dropout=recipe.dropout,
    )
    if recipe.randomise:
        return randomise(images, regions, generator=generator)
    return images, regions


@torch.no_grad()
def _average(average: list[Tensor], network: nn.Module, *, decay: float, steps: int) -> None:
    """Move the average towards the weights; its decay grows from 2/11 to `decay`."""
    share = 1 - min(decay, (1 + steps) / (10 + steps))
    for mean, value in zip(average, network.parameters(), strict=True):
        mean.lerp_(value, share)
