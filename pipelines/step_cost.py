"""One way of training, measured alone in this process.

    python pipelines/step_cost.py WAY CROP TIMED_SECONDS

prints one JSON line. A process measures one way only, because the peak of memory is a property of
the process. `benchmark.py` runs the ways side by side.

All ways do one optimizer step over the same synthetic crops of the same patients. The Opacus ways
clip every crop by itself, which is not the privacy unit of medfl; they stand here for their cost.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from monai.losses import DiceLoss
from monai.networks.blocks.segresnet_block import ResBlock
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medfl.privacy.engine import train_round
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import MAX_STD, SecureNormal
from medfl.privacy.patients import Patients
from medfl.segmentation.losses import patient_loss
from medfl.segmentation.networks import build_network

PATIENTS = 4
CROPS = 4
MODALITIES = 4
REGIONS = 3
LEARNING_RATE = 1e-3
NOISE_MULTIPLIER = 1.0
CLIP_NORM = 1.0
MIN_STEPS = 3

Step = Callable[[], object]


def network(crop: int, **arguments: Any) -> nn.Module:
    """The small SegResNet of the benchmark: 178 thousand parameters."""
    return build_network(
        name="SegResNet",
        arguments={"init_filters": 8, "blocks_down": [1, 2, 2], "blocks_up": [1, 1], **arguments},
        in_channels=MODALITIES,
        out_channels=REGIONS,
        crop_size=(crop, crop, crop),
        seed=0,
    )


def crops_of_patients(crop: int) -> tuple[Tensor, Tensor]:
    """Images NKCDHW and regions NKRDHW of N patients with K crops each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PATIENTS, CROPS, MODALITIES, crop, crop, crop, generator=generator)
    regions = torch.rand(PATIENTS, CROPS, REGIONS, crop, crop, crop, generator=generator) < 0.1
    return images, regions.to(torch.uint8)


def plain_batch(crop: int) -> Step:
    """No privacy, all crops in one batch."""
    model = network(crop)
    images, regions = (tensor.flatten(0, 1) for tensor in crops_of_patients(crop))
    optimizer = _sgd(model)

    def step() -> None:
        optimizer.zero_grad()
        patient_loss(model(images), regions).backward()
        optimizer.step()

    return step


def plain_grouped(crop: int) -> Step:
    """No privacy, one forward and backward per patient: what the engine is compared with."""
    model = network(crop)
    images, regions = crops_of_patients(crop)
    optimizer = _sgd(model)

    def step() -> None:
        optimizer.zero_grad()
        for index in range(PATIENTS):
            (patient_loss(model(images[index]), regions[index]) / PATIENTS).backward()
        optimizer.step()

    return step


class FreePermit:
    """Spends nothing: no patient stands behind these crops."""

    def consume(self) -> None:
        """Allow the step."""


def patient_engine(crop: int) -> Step:
    """medfl: patient-level DP-SGD, every patient drawn."""
    model = network(crop)
    images, regions = crops_of_patients(crop)
    mechanism = Mechanism(
        sampling_prob=1.0,
        noise_multiplier=NOISE_MULTIPLIER,
        clip_norm=CLIP_NORM,
        clipping="normalised",
        local_steps=1,
        declared_patients=PATIENTS,
    )
    optimizer, source = _sgd(model), SecureNormal.from_operating_system()
    patients = Patients(
        names=tuple(str(number) for number in range(PATIENTS)),
        stream="benchmark",
        loss_of=lambda index, _: patient_loss(model(images[index]), regions[index]),
    )

    def step() -> None:
        train_round(
            model,
            mechanism=mechanism,
            permit=FreePermit(),
            patients=patients,
            optimizer=optimizer,
            source=source,
            proximal_mu=0.0,
            on_step=lambda _done, _steps: None,
        )

    return step


def noise_alone(crop: int) -> Step:
    """Only the noise of one step of the engine."""
    shapes = [tuple(parameter.shape) for parameter in network(crop).parameters()]
    source = SecureNormal.from_operating_system()
    return lambda: [source.rounded_normal(shape, std=MAX_STD) for shape in shapes]


class OutOfPlaceResBlock(ResBlock):  # type: ignore[misc]
    """MONAI's block without ``x += identity``, which Opacus' hooks cannot take."""

    def forward(self, x: Tensor) -> Tensor:
        """The same value as the parent's."""
        inner = self.conv1(self.act(self.norm1(x)))
        residual: Tensor = self.conv2(self.act(self.norm2(inner)))
        return residual + x


def without_in_place_operations(crop: int) -> nn.Module:
    """The benchmark's network with the same weights and values, fit for Opacus' hooks."""
    model = network(crop, act=["RELU", {"inplace": False}])
    for module in model.modules():
        if type(module) is ResBlock:
            module.__class__ = OutOfPlaceResBlock
    return model


class CropLoss:
    """`patient_loss` of every crop by itself, in the form that Opacus wants."""

    reduction = "mean"

    def __call__(self, logits_BRDHW: Tensor, regions_BRDHW: Tensor) -> Tensor:
        """Losses of shape B where `reduction` is ``none``, else their mean."""
        truth = regions_BRDHW.to(logits_BRDHW.dtype)
        dice = DiceLoss(sigmoid=True, reduction="none")(logits_BRDHW, truth)
        entropy = binary_cross_entropy_with_logits(logits_BRDHW, truth, reduction="none")
        losses: Tensor = dice.flatten(1).mean(1) + entropy.flatten(1).mean(1)
        return losses if self.reduction == "none" else losses.mean()


def opacus_hooks(crop: int) -> Step:
    """Opacus' per-sample gradients from hooks; clips per crop."""
    model = GradSampleModule(without_in_place_operations(crop))
    images, regions = (tensor.flatten(0, 1) for tensor in crops_of_patients(crop))
    optimizer = DPOptimizer(
        _sgd(model),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=PATIENTS * CROPS,
    )
    loss = CropLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(images), regions).backward()
        optimizer.step()

    return step


def opacus_ghost(crop: int) -> Step:
    """Opacus' ghost clipping, two backward passes; clips per crop."""
    model = GradSampleModuleFastGradientClipping(
        without_in_place_operations(crop), max_grad_norm=CLIP_NORM
    )
    images, regions = (tensor.flatten(0, 1) for tensor in crops_of_patients(crop))
    optimizer = DPOptimizerFastGradientClipping(
        _sgd(model),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=PATIENTS * CROPS,
    )
    loss = DPLossFastGradientClipping(model, optimizer, CropLoss())

    def step() -> None:
        optimizer.zero_grad()
        loss(model(images), regions).backward()
        optimizer.step()

    return step


WAYS: dict[str, Callable[[int], Step]] = {
    way.__name__: way
    for way in (
        plain_batch,
        plain_grouped,
        patient_engine,
        opacus_hooks,
        opacus_ghost,
        noise_alone,
    )
}


def measure(way: str, *, crop: int, timed_seconds: float) -> dict[str, Any]:
    """Median time of a step after one to warm up, and peak memory above the imports.

    Args:
        way: A key of `WAYS`.
        crop: Edge of a crop in voxels.
        timed_seconds: Steps are repeated until they took this long, and `MIN_STEPS` times at least;
            zero for a single step.
    """
    imports = _peak_bytes()
    step = WAYS[way](crop)
    step()
    seconds: list[float] = []
    while not seconds or (
        timed_seconds > 0 and (len(seconds) < MIN_STEPS or sum(seconds) < timed_seconds)
    ):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {
        "way": way,
        "crop": crop,
        "seconds": statistics.median(seconds),
        "steps": len(seconds),
        "peak_bytes": _peak_bytes() - imports,
        "threads": torch.get_num_threads(),
    }


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], crop=int(sys.argv[2]), timed_seconds=float(sys.argv[3]))))
