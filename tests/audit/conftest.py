"""Engines, sources and draws with a planted bug, for audits that have to notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medfl.privacy import engine
from medfl.privacy.engine import PatientOptimizer, clip_to_grid
from medfl.privacy.noise import SecureNormal

CROPS = 4


class OtherNoise(PatientOptimizer):
    """Releases integers, but not those of the engine."""

    def noise(self) -> list[Tensor]:
        """What is added to each parameter's sum."""
        grid = self._mechanism.grid
        std = self._mechanism.share_std / grid
        return [self._source.rounded_normal(tuple(p.shape), std=std) for p in self.params]

    def add_noise(self) -> None:
        for parameter, noise in zip(self.params, self.noise(), strict=True):
            total = (parameter.summed_grad + noise).double() * self._mechanism.grid
            parameter.grad = total.to(parameter.dtype)


class NoNoise(OtherNoise):
    """Releases the sum as it is."""

    def noise(self) -> list[Tensor]:
        return [torch.zeros_like(part) for part in super().noise()]


class NoiseInOneParameter(OtherNoise):
    """Forgets one of the network's parameters."""

    def noise(self) -> list[Tensor]:
        parts = super().noise()
        return [parts[0], torch.zeros_like(parts[1]), *parts[2:]]


class HalvedNoise(OtherNoise):
    """Adds half of the noise."""

    def noise(self) -> list[Tensor]:
        return [part // 2 for part in super().noise()]


class NoiseOnePercentShort(OtherNoise):
    """Rounds sigma down."""

    def noise(self) -> list[Tensor]:
        return [(part * 0.99).round().long() for part in super().noise()]


class NoiseDividedByBatch(OtherNoise):
    """Takes the mean over the drawn patients for the sum, and scales the noise to it."""

    drawn = 0

    def add_patient(self, loss: Tensor) -> bool:
        self.drawn += 1
        return super().add_patient(loss)

    def noise(self) -> list[Tensor]:
        drawn, self.drawn = max(self.drawn, 1), 0
        return [part // drawn for part in super().noise()]


class SameNoiseEveryStep(OtherNoise):
    """Draws the noise of a round once."""

    kept: list[Tensor] | None = None

    def noise(self) -> list[Tensor]:
        self.kept = self.kept or super().noise()
        return self.kept


class NoiseKeptByShape(OtherNoise):
    """Gives two parameters of one shape the same noise."""

    def noise(self) -> list[Tensor]:
        by_shape = {part.shape: part for part in super().noise()}
        return [by_shape[p.shape] for p in self.params]


class NoiseOfARow(OtherNoise):
    """Draws noise for the last axis alone and adds it to every row."""

    def noise(self) -> list[Tensor]:
        return [part[(0,) * (part.dim() - 1)].expand(part.shape) for part in super().noise()]


class NoiseInCommon(OtherNoise):
    """A twentieth of the variance is the same in all weights of a step."""

    def noise(self) -> list[Tensor]:
        parts = super().noise()
        common = float(parts[0].flatten()[0])
        return [(part * 0.95**0.5 + common * 0.05**0.5).round().long() for part in parts]


class NoiseThatCancels(OtherNoise):
    """Draws half of the noise and turns the other half's sign."""

    def noise(self) -> list[Tensor]:
        flat = [part.flatten() for part in super().noise()]
        turned = [torch.cat([f[: (len(f) + 1) // 2], -f[: len(f) // 2]]) for f in flat]
        return [part.reshape(p.shape) for part, p in zip(turned, self.params, strict=True)]


class NoiseWoundBack(OtherNoise):
    """Every step begins a little earlier in the stream of the one before."""

    kept: list[Tensor] | None = None

    def noise(self) -> list[Tensor]:
        fresh = super().noise()
        if self.kept is not None:
            old = self.kept[-1].flatten()
            last = torch.cat([old[500:], fresh[-1].flatten()[:500]])
            fresh[-1] = last.reshape(fresh[-1].shape)
        self.kept = fresh
        return fresh


class UniformNoise(OtherNoise):
    """Of the right variance."""

    def noise(self) -> list[Tensor]:
        std = self._mechanism.noise_std / self._mechanism.grid
        values = [self._source.uniform(p.numel()) for p in self.params]
        scaled = [np.rint((value * 2 - 1) * std * 3**0.5).astype(np.int64) for value in values]
        return [
            torch.from_numpy(part).reshape(p.shape)
            for part, p in zip(scaled, self.params, strict=True)
        ]


class LaplaceNoise(OtherNoise):
    """Of the right variance."""

    def noise(self) -> list[Tensor]:
        std = self._mechanism.noise_std / self._mechanism.grid
        parts = []
        for parameter in self.params:
            uniform = self._source.uniform(parameter.numel()) - 0.5 + 2.0**-60
            values = -np.sign(uniform) * np.log1p(-2 * np.abs(uniform)) * std / 2**0.5
            parts.append(torch.from_numpy(np.rint(values).astype(np.int64)))
        return [part.reshape(p.shape) for part, p in zip(parts, self.params, strict=True)]


class NoiseCutAt3(OtherNoise):
    """Has no tails."""

    reach = 3.0

    def noise(self) -> list[Tensor]:
        most = int(self.reach * self._mechanism.noise_std / self._mechanism.grid)
        return [part.clamp(-most, most) for part in super().noise()]


class NoiseCutAt4(NoiseCutAt3):
    """Has tails that end."""

    reach = 4.0


class EvenNoise(OtherNoise):
    """Multiples of two: the last bit of a sum stays in the open."""

    def noise(self) -> list[Tensor]:
        return [part // 2 * 2 for part in super().noise()]


class LastBitTellsWhoWasDrawn(OtherNoise):
    """The first weight's integer is odd whenever somebody with a large gradient was drawn."""

    seen = False

    def add_patient(self, loss: Tensor) -> bool:
        added = super().add_patient(loss)
        self.seen |= float(self.params[0].grad.abs().max()) > 100
        return added

    def noise(self) -> list[Tensor]:
        parts, seen = super().noise(), self.seen
        first = parts[0] + self.params[0].summed_grad
        parts[0].flatten()[3] += int(seen) - int(first.flatten()[3]) % 2
        self.seen = False
        return parts


class BitInAMantissa(PatientOptimizer):
    """The last bits of one released parameter are what they should not be."""

    def add_noise(self) -> None:
        super().add_noise()
        # One weight's last bit may be lost when a step is added to the model.
        self.params[0].grad.view(torch.int32).bitwise_xor_(1)


class FloatSum(PatientOptimizer):
    """Adds float32 noise to a float32 sum, as Opacus does."""

    def add_noise(self) -> None:
        for parameter in self.params:
            total = (parameter.summed_grad.double() * self._mechanism.grid).float() / 3 * 3
            fine = self._source.rounded_normal(tuple(parameter.shape), std=2.0**20)
            parameter.grad = total + fine.float() * (self._mechanism.noise_std * 2.0**-20 * 1.0001)


class ClippedPerCrop(PatientOptimizer):
    """Takes a crop for the unit, so that a patient counts as often as they have crops.

    A canary's crops are all alike: clipping each by itself adds up to as many clipped gradients.
    """

    def clip_and_accumulate(self) -> None:
        super().clip_and_accumulate()
        if len(self.grad_samples[0]):
            for _ in range(CROPS - 1):
                super().clip_and_accumulate()


class ClippedByParameter(PatientOptimizer):
    """Clips each parameter's gradient to C by itself."""

    def clip_and_accumulate(self) -> None:
        for parameter in self.params:
            (addend,) = clip_to_grid([parameter.grad_sample], mechanism=self._mechanism)
            summed = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = addend if summed is None else summed + addend


class NeverClipped(PatientOptimizer):
    """Trusts that gradients are small."""

    def clip_and_accumulate(self) -> None:
        for parameter in self.params:
            addend = (parameter.grad_sample.double().sum(0) / self._mechanism.grid).long()
            summed = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = addend if summed is None else summed + addend


class EmptyBatchSkipped(PatientOptimizer):
    """Does nothing in a step without patients, so that empty draws show."""

    drawn = 0

    def add_patient(self, loss: Tensor) -> bool:
        self.drawn += 1
        return super().add_patient(loss)

    def release(self) -> None:
        if self.drawn:
            super().release()
        self.drawn = 0


class ReleasedTwice(PatientOptimizer):
    """Releases every step twice, and charges once."""

    def release(self) -> None:
        super().release()
        super().release()


class GradientsNotCleared(PatientOptimizer):
    """What a patient leaves in the gradients, the next one adds to."""

    def add_patient(self, loss: Tensor) -> bool:
        loss.backward()
        for parameter in self.params:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad_sample = gradient.unsqueeze(0)
        self.signal_skip_step(True)
        self.step()
        return True


ENGINES: dict[str, type[PatientOptimizer]] = {
    "no noise": NoNoise,
    "noise in one parameter only": NoiseInOneParameter,
    "noise halved": HalvedNoise,
    "noise one percent short": NoiseOnePercentShort,
    "noise divided by the batch": NoiseDividedByBatch,
    "noise repeated in every step": SameNoiseEveryStep,
    "noise shared by two parameters": NoiseKeptByShape,
    "noise of a row": NoiseOfARow,
    "noise in common": NoiseInCommon,
    "noise that cancels": NoiseThatCancels,
    "noise wound back": NoiseWoundBack,
    "uniform noise": UniformNoise,
    "Laplace noise": LaplaceNoise,
    "noise cut at 3 sigma": NoiseCutAt3,
    "noise cut at 4 sigma": NoiseCutAt4,
    "even noise": EvenNoise,
    "last bit tells who was drawn": LastBitTellsWhoWasDrawn,
    "a bit in a mantissa": BitInAMantissa,
    "a sum in float32": FloatSum,
    "clipped per crop": ClippedPerCrop,
    "clipped by parameter": ClippedByParameter,
    "never clipped": NeverClipped,
    "empty batch skipped": EmptyBatchSkipped,
    "released twice": ReleasedTwice,
    "gradients not cleared": GradientsNotCleared,
}


def _drawn_too_often(*, population: int, probability: float, source: Any) -> list[int]:
    return [int(i) for i in np.flatnonzero(source.uniform(population) < 1.2 * probability)]


def _of_fixed_size(*, population: int, probability: float, source: Any) -> list[int]:
    order = np.argsort(source.uniform(population))
    return sorted(int(i) for i in order[: round(population * probability)])


def _with_replacement(*, population: int, probability: float, source: Any) -> list[int]:
    places = source.uniform(round(population * probability)) * population
    return sorted(int(place) for place in places)


def _one_coin(*, population: int, probability: float, source: Any) -> list[int]:
    return list(range(population)) if source.uniform(1)[0] < probability else []


def _without_the_last(*, population: int, probability: float, source: Any) -> list[int]:
    return [int(i) for i in np.flatnonzero(source.uniform(population) < probability)][:-1] or []


class _Epochs:
    """Shuffles everybody and deals them out."""

    def __init__(self) -> None:
        self._left: list[int] = []

    def __call__(self, *, population: int, probability: float, source: Any) -> list[int]:
        if not self._left:
            self._left = [int(i) for i in np.argsort(source.uniform(population))]
        size = max(1, round(population * probability))
        batch, self._left = self._left[:size], self._left[size:]
        return batch


SAMPLERS: dict[str, Callable[[], Callable[..., list[int]]]] = {
    "everybody drawn": lambda: lambda *, population, **_: list(range(population)),
    "drawn too often": lambda: _drawn_too_often,
    "batches of a fixed size": lambda: _of_fixed_size,
    "drawn with replacement": lambda: _with_replacement,
    "one coin for all": lambda: _one_coin,
    "shuffled epochs": _Epochs,
    "somebody left out": lambda: (
        lambda *, population, **keywords: _poisson(population=population - 1, **keywords)
    ),
}
REPEATED = "noise repeated in every round"

_poisson = engine.poisson_draw


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a test break the engine by the name of a bug."""

    def break_engine(bug: str) -> None:
        if bug in SAMPLERS:
            monkeypatch.setattr(engine, "poisson_draw", SAMPLERS[bug]())
        elif bug == REPEATED:
            # As a global seed would do.
            monkeypatch.setattr(
                SecureNormal,
                "from_operating_system",
                classmethod(lambda cls: cls(bytes(32), origin="operating-system")),
            )
        else:
            monkeypatch.setattr(engine, "PatientOptimizer", ENGINES[bug])

    return break_engine
