"""Gradient inversion: what a curious server sees of one patient in a site's update.

The attack of Geiping et al. (arXiv 2003.14053, eq. 4): look for the image whose gradient points
where the update points, and prefer smooth ones. The attacker here is strong: it knows the patient's
tumour outline, and that one step was taken in which nobody else was drawn. The setting is kind to
it as well: a small network of the studies' kind at its first weights, made smooth and wide enough
that the attack works, and one coarse crop without augmentation. The patient is synthetic.

The update without noise is clipped, divided and applied by the same code as the one with noise, so
the difference between the two pictures is the noise alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfl.config.site import Modality, Region
from medfl.data.intensity import normalise_scan
from medfl.data.labels import regions_of
from medfl.phantom.patient import hospital_looks, make_patient
from medfl.privacy.accounting.accountant import epsilon
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.engine import PatientOptimizer, local_optimizer
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.segmentation.losses import patient_loss
from medfl.segmentation.networks import Size, build_network

FloatArray = npt.NDArray[np.float32]

SCAN: Size = (24, 24, 8)
"""Voxels of the patient's scan, which holds the whole brain."""

CROP: Size = (24, 24, 4)
"""The slices with most of the tumour."""

SPACING = (7.0, 8.0, 18.0)
"""Millimetres a voxel."""

MODALITY: Modality = "t2f"
REGIONS: tuple[Region, ...] = ("TC", "WT", "ET")
NETWORK = "SegResNet"
ARGUMENTS = {"init_filters": 16, "blocks_down": [1, 1], "blocks_up": [1], "act": "GELU"}

ITERATIONS = 350
_LEARNING_RATE = 0.1
_TOTAL_VARIATION = 3e-3
_BRIGHTEST = 3.0  # of typical tissue, which is 1: no scan has brighter voxels
_DECAYS = (3 / 8, 5 / 8, 7 / 8)  # of the iterations, as Geiping et al. do

OnIteration = Callable[[int, int], None]
"""Told the iterations done and all of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inversion:
    """One patient and what was recovered of it, axes right, anterior, superior.

    Attributes:
        patient_DHW: The patient's scan; 0 is air, 1 typical tissue.
        without_noise_DHW: What the update without noise betrays.
        with_noise_DHW: What the update betrays that would really have left the site.
        correlation_without_noise: Pearson's r with the patient over the voxels of the brain, so
            that the outline of the head alone earns nothing.
        correlation_with_noise: The same with noise.
        noise_over_signal: Norm of the noise over that of the patient's clipped gradient.
        epsilon: Of all steps of the study, of which this is one.
        delta: At which epsilon is read.
        noise_origin: ``seeded`` noise protects nobody and is for a picture only.
        axial_slice: Index of the slice with most of the tumour.
        spacing_mm: Voxel size.
    """

    patient_DHW: FloatArray
    without_noise_DHW: FloatArray
    with_noise_DHW: FloatArray
    correlation_without_noise: float
    correlation_with_noise: float
    noise_over_signal: float
    epsilon: float
    delta: float
    noise_origin: str
    axial_slice: int
    spacing_mm: tuple[float, float, float]


def invert_update(
    *,
    mechanism: Mechanism,
    steps: int,
    delta: float,
    seed: int,
    iterations: int = ITERATIONS,
    advance: OnIteration,
) -> Inversion:
    """Attack one step of a site, without and with the mechanism's noise.

    Args:
        mechanism: What the site runs; with ``seeded`` noise the result follows from the arguments.
        steps: Steps of the whole study, for epsilon.
        delta: At which epsilon is read.
        seed: Of the patient, the network's first weights, and the attacker's first guess.
        iterations: Of each of the two attacks; the default takes about half a minute each.
        advance: Progress over both.

    Raises:
        ValueError: If an argument is out of range.
    """
    image_KCDHW, regions_KRDHW = _patient(seed)
    network = build_network(
        name=NETWORK,
        arguments=ARGUMENTS,
        in_channels=1,
        out_channels=len(REGIONS),
        crop_size=CROP,
        seed=seed,
    )
    signal, noisy = (
        released_sum(
            network, image_KCDHW, regions_KRDHW, mechanism=each, source=_source(each, seed)
        )
        for each in (replace(mechanism, noise_multiplier=0.0), mechanism)
    )

    def attack(update: Sequence[Tensor], *, done_before: int) -> Tensor:
        return recover(
            network,
            update,
            regions_KRDHW=regions_KRDHW,
            seed=seed,
            iterations=iterations,
            on_iteration=lambda done, _: advance(done_before + done, 2 * iterations),
        )

    without_noise = attack(signal, done_before=0)
    with_noise = attack(noisy, done_before=iterations)
    brain = image_KCDHW > 0
    tumour_DHW = regions_KRDHW[0].any(dim=0)
    return Inversion(
        patient_DHW=image_KCDHW[0, 0].numpy(),
        without_noise_DHW=without_noise[0, 0].numpy(),
        with_noise_DHW=with_noise[0, 0].numpy(),
        correlation_without_noise=_correlation(without_noise[brain], image_KCDHW[brain]),
        correlation_with_noise=_correlation(with_noise[brain], image_KCDHW[brain]),
        noise_over_signal=float((_flat(noisy) - _flat(signal)).norm() / _flat(signal).norm()),
        epsilon=epsilon([Charge(mechanism=mechanism, steps=steps)], delta=delta),
        delta=delta,
        noise_origin=mechanism.noise_origin,
        axial_slice=int(tumour_DHW.sum(dim=(0, 1)).argmax()),
        spacing_mm=SPACING,
    )


def released_sum(
    network: nn.Module,
    image_KCDHW: Tensor,
    regions_KRDHW: Tensor,
    *,
    mechanism: Mechanism,
    source: SecureNormal,
) -> list[Tensor]:
    """One step in which one patient was drawn, as the server reads it off the site's update.

    Args:
        network: The global model; not changed.
        image_KCDHW: The patient's crops.
        regions_KRDHW: Their truth.
        mechanism: Clip norm, noise and divisor.
        source: The noise.

    Returns:
        The patient's clipped gradient plus noise, one tensor a trainable parameter.
    """
    trained = copy.deepcopy(network)
    private = PatientOptimizer(
        local_optimizer(trained, kind="sgd", learning_rate=1.0), mechanism=mechanism, source=source
    )
    private.add_patient(patient_loss(trained(image_KCDHW), regions_KRDHW))
    private.release()
    pairs = zip(_trainable(network), _trainable(trained), strict=True)
    return [(before - after).detach() * mechanism.divisor for before, after in pairs]


def recover(
    network: nn.Module,
    update: Sequence[Tensor],
    *,
    regions_KRDHW: Tensor,
    seed: int,
    iterations: int,
    on_iteration: OnIteration,
) -> Tensor:
    """Look for the image that would have caused an update.

    Args:
        network: The global model that the update started from.
        update: What `released_sum` gives.
        regions_KRDHW: The truth of the patient's crops, which this attacker knows.
        seed: Of the first guess.
        iterations: Steps of signed Adam.
        on_iteration: Progress.

    Returns:
        float32 image_KCDHW with one channel.
    """
    parameters = _trainable(network)
    guess = torch.rand(
        (len(regions_KRDHW), 1, *regions_KRDHW.shape[2:]),
        generator=torch.Generator().manual_seed(seed),
    ).requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=_LEARNING_RATE)
    milestones = [int(part * iterations) for part in _DECAYS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    direction = _flat(update)
    for iteration in range(iterations):
        loss = patient_loss(network(guess), regions_KRDHW)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        likeness = torch.cosine_similarity(_flat(gradients), direction, dim=0)
        objective = _TOTAL_VARIATION * _total_variation(guess) - likeness
        (slope,) = torch.autograd.grad(objective, guess)
        # Signed, as Geiping et al. do: each voxel moves, however little it matters to the update.
        guess.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0, _BRIGHTEST)
        on_iteration(iteration + 1, iterations)
    return guess.detach()


def _patient(seed: int) -> tuple[Tensor, Tensor]:
    """One crop through the tumour: image_KCDHW and regions_KRDHW with K = 1."""
    patient = make_patient(
        shape=SCAN,
        spacing=SPACING,
        look=hospital_looks()["north"],
        skull_stripped=True,
        seed=seed,
    )
    depth = CROP[2]
    sums = np.convolve((patient.labels > 0).sum(axis=(0, 1)), np.ones(depth), mode="valid")
    first = int(sums.argmax())
    slab = np.s_[..., first : first + depth]
    image_DHW = torch.from_numpy(normalise_scan(patient.images[MODALITY])[slab])
    regions_RDHW = regions_of(patient.labels[slab], scheme="brats", regions=REGIONS)
    return image_DHW[None, None], torch.from_numpy(regions_RDHW)[None]


def _source(mechanism: Mechanism, seed: int) -> SecureNormal:
    if mechanism.noise_origin == "seeded":
        return SecureNormal.seeded("gradient inversion", seed)
    return SecureNormal.from_operating_system()


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _total_variation(image_KCDHW: Tensor) -> Tensor:
    """Mean absolute step between neighbours, summed over the three axes."""
    steps = [image_KCDHW.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]
    return torch.stack(steps).sum()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's r; 0 where one of the two is constant."""
    a, b = first.double() - first.double().mean(), second.double() - second.double().mean()
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else 0.0
