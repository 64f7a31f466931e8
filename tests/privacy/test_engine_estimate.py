"""What an observer can measure of the engine: its sensitivity, its noise, and what both promise.

A canary patient with a huge gradient takes part in one run and not in the other. From the released
sums alone an estimator reads how far one patient moves them and how much noise hides it. The real
engine keeps its promise; engines with a planted bug have to be caught.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfl.privacy import engine
from medfl.privacy.accountant import Charge
from medfl.privacy.engine import PatientOptimizer, local_optimizer, train_round
from medfl.privacy.ledger import Permit
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal

ROUNDS, STEPS = 150, 10
CROPS = 4
SIZES = (12, 20)  # of the model's two parameters
FIXED_PATIENTS = 3
MECHANISM = Mechanism(
    sampling_prob=1.0,
    noise_multiplier=1.0,
    clip_norm=0.5,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=FIXED_PATIENTS + 1,
    noise_origin="seeded",
)
TOLERANCE = 0.15  # four standard errors of a sensitivity that is estimated from 1500 steps


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What was measured, in units of the clip norm.

    Attributes:
        sensitivity: How far the canary moves the sum of one step.
        noise_std: Standard deviation per coordinate of what differs from round to round.
        mu: Of the Gaussian mechanism that these two amount to; infinite without noise.
    """

    sensitivity: float
    noise_std: float

    @property
    def mu(self) -> float:
        return self.sensitivity / self.noise_std if self.noise_std > 0 else math.inf


def estimate(with_canary: list[Tensor], without: list[Tensor], *, clip_norm: float) -> Estimate:
    """Measure an engine by what it released.

    Args:
        with_canary: One tensor a parameter, of shape (rounds, steps, coordinates): the noisy sums
            of the steps, with the canary among the patients.
        without: The same without it.
        clip_norm: Unit of the result.
    """
    moved = torch.cat(
        [a.mean(dim=(0, 1)) - b.mean(dim=(0, 1)) for a, b in zip(with_canary, without, strict=True)]
    )
    # The patients are the same in every round: what changes from one to the next is the noise.
    # Noise that repeats itself changes nothing, and an observer can subtract it.
    changes = [sums.diff(dim=0) / math.sqrt(2) for sums in (*with_canary, *without)]
    return Estimate(
        # The canary's own direction: a norm over all coordinates would add up their errors.
        sensitivity=float(moved.abs().max()) / clip_norm,
        noise_std=min(float(change.std()) for change in changes) / clip_norm,
    )


def keeps_promise(found: Estimate, mechanism: Mechanism) -> bool:
    """Whether one patient moves a step by no more, under no less noise, than the mechanism says."""
    return (
        found.sensitivity <= 1 + TOLERANCE
        and found.noise_std >= mechanism.noise_multiplier * (1 - TOLERANCE / 3)
        and found.mu <= (1 + TOLERANCE) / mechanism.noise_multiplier
    )


class Linear(nn.Module):
    """Two parameters; a crop's gradient is the crop itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(SIZES[0]))
        self.second = nn.Parameter(torch.zeros(SIZES[1]))

    def flat(self) -> Tensor:
        return torch.cat([self.first, self.second])


def patients(*, canary: bool) -> list[Tensor]:
    """Crops of every patient, of shape (crops, coordinates); the canary points along one axis."""
    generator = torch.Generator().manual_seed(3)
    size = sum(SIZES)
    crops = list(torch.randn((FIXED_PATIENTS, CROPS, size), generator=generator))
    if canary:
        crops.append(1e4 * torch.eye(size)[0].expand(CROPS, size))
    return crops


Noise = Callable[[str, int], SecureNormal]


def fresh_noise(world: str, number: int) -> SecureNormal:
    """A stream of its own for every round, as the operating system would give."""
    return SecureNormal.seeded(world, number)


def repeated_noise(world: str, number: int) -> SecureNormal:
    """The same stream every round, as a global seed would give."""
    return SecureNormal.seeded("determinism")


def released_sums(*, canary: bool, noise: Noise) -> list[Tensor]:
    """Noisy sums of every step, of shape (rounds, steps, coordinates) for each parameter."""
    network, crops = Linear(), patients(canary=canary)
    path = [network.flat().detach().clone()]

    def loss_of(index: int) -> Tensor:
        by_crop = crops[index] @ network.flat()
        loss = by_crop.mean()
        loss.by_crop = by_crop  # for the engine that clips every crop on its own
        return loss

    for number in range(ROUNDS):
        train_round(
            network,
            mechanism=MECHANISM,
            permit=Permit(Charge(mechanism=MECHANISM, steps=STEPS)),
            population=len(crops),
            loss_of=loss_of,
            optimizer=local_optimizer(network, kind="sgd", learning_rate=1.0),
            source=noise("with" if canary else "without", number),
            proximal_mu=0.0,
            on_step=lambda *_: path.append(network.flat().detach().clone()),
        )
    sums = -torch.stack(path).double().diff(dim=0) * MECHANISM.divisor
    return list(sums.reshape(ROUNDS, STEPS, -1).split(SIZES, dim=2))


def measure(noise: Noise = fresh_noise) -> Estimate:
    return estimate(
        released_sums(canary=True, noise=noise),
        released_sums(canary=False, noise=noise),
        clip_norm=MECHANISM.clip_norm,
    )


class NoNoise(PatientOptimizer):
    """Releases the sum as it is."""

    def add_noise(self) -> None:
        for parameter in self.params:
            parameter.grad = parameter.summed_grad


class NoiseInOneParameter(PatientOptimizer):
    """Forgets one of the network's parameters."""

    def add_noise(self) -> None:
        super().add_noise()
        self.params[1].grad = self.params[1].summed_grad


class HalvedNoise(PatientOptimizer):
    """Adds half of the noise."""

    def add_noise(self) -> None:
        super().add_noise()
        for parameter in self.params:
            parameter.grad = (parameter.grad + parameter.summed_grad) / 2


class NoiseDividedByBatch(PatientOptimizer):
    """Takes the mean over the drawn patients for the sum, and scales the noise to it."""

    drawn = 0

    def add_patient(self, loss: Tensor) -> bool:
        self.drawn += 1
        return super().add_patient(loss)

    def add_noise(self) -> None:
        super().add_noise()
        for parameter in self.params:
            noise = parameter.grad - parameter.summed_grad
            parameter.grad = parameter.summed_grad + noise / max(self.drawn, 1)
        self.drawn = 0


class ClippedPerCrop(PatientOptimizer):
    """Takes a crop for the unit, so that a patient counts as often as they have crops."""

    def add_patient(self, loss: Any) -> bool:
        for crop_loss in loss.by_crop:
            self.zero_grad(set_to_none=True)
            crop_loss.backward(retain_graph=True)
            for parameter in self.params:
                parameter.grad_sample = parameter.grad.unsqueeze(0)
            self.signal_skip_step(True)
            self.step()
        return True


class NeverClipped(PatientOptimizer):
    """Trusts that gradients are small."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.max_grad_norm = 1e9


PLANTED: dict[str, tuple[type[PatientOptimizer], Noise]] = {
    "no noise": (NoNoise, fresh_noise),
    "noise in one parameter only": (NoiseInOneParameter, fresh_noise),
    "noise halved": (HalvedNoise, fresh_noise),
    "noise divided by the batch": (NoiseDividedByBatch, fresh_noise),
    "noise repeated in every round": (PatientOptimizer, repeated_noise),
    "clipped per crop": (ClippedPerCrop, fresh_noise),
    "never clipped": (NeverClipped, fresh_noise),
}


def test_the_engine_keeps_its_promise() -> None:
    found = measure()
    assert keeps_promise(found, MECHANISM)
    # Nor does it waste anything: the canary moves the sum by C, under exactly the promised noise.
    assert found.sensitivity == pytest.approx(1.0, abs=TOLERANCE)
    assert found.noise_std == pytest.approx(1.0, abs=TOLERANCE / 3)
    assert found.mu == pytest.approx(1.0, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_an_engine_with_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, noise = PLANTED[bug]
    monkeypatch.setattr(engine, "PatientOptimizer", broken)
    found = measure(noise)
    assert not keeps_promise(found, MECHANISM)
    if bug == "clipped per crop":
        assert found.sensitivity == pytest.approx(CROPS, abs=TOLERANCE)
