"""Engines with a planted bug, for audits that have to notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from medfl.privacy import engine
from medfl.privacy.engine import PatientOptimizer
from medfl.privacy.noise import SecureNormal

CROPS = 4


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


class SameNoiseEveryStep(PatientOptimizer):
    """Draws the noise of a round once."""

    kept: list[Tensor] | None = None

    def add_noise(self) -> None:
        super().add_noise()
        if self.kept is None:
            self.kept = [p.grad - p.summed_grad for p in self.params]
        for parameter, noise in zip(self.params, self.kept, strict=True):
            parameter.grad = parameter.summed_grad + noise


class ClippedPerCrop(PatientOptimizer):
    """Takes a crop for the unit, so that a patient counts as often as they have crops.

    A canary's crops are all alike: clipping each by itself adds up to as many clipped gradients.
    """

    def clip_and_accumulate(self) -> None:
        for parameter in self.params:
            parameter.grad_sample = parameter.grad_sample.repeat_interleave(CROPS, dim=0)
        super().clip_and_accumulate()


class NeverClipped(PatientOptimizer):
    """Trusts that gradients are small."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.max_grad_norm = 1e9

    def add_patient(self, loss: Tensor) -> bool:
        self.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.params:
            gradient = parameter.new_zeros(parameter.shape)
            parameter.grad_sample = (gradient if parameter.grad is None else parameter.grad)[None]
        self.signal_skip_step(True)
        self.step()
        return True


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


ENGINES: dict[str, type[PatientOptimizer]] = {
    "no noise": NoNoise,
    "noise in one parameter only": NoiseInOneParameter,
    "noise halved": HalvedNoise,
    "noise divided by the batch": NoiseDividedByBatch,
    "noise repeated in every step": SameNoiseEveryStep,
    "clipped per crop": ClippedPerCrop,
    "never clipped": NeverClipped,
    "empty batch skipped": EmptyBatchSkipped,
}
REPEATED = "noise repeated in every round"


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a test break the engine by the name of a bug."""

    def break_engine(bug: str) -> None:
        if bug == "everybody drawn":
            monkeypatch.setattr(
                engine, "poisson_draw", lambda *, population, **_: list(range(population))
            )
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
