"""`mechanism_test`: what an observer can measure of the engine, beside what it promises.

A canary patient with a huge gradient takes part in one world and not in the other. From the
released sums alone an estimator reads how far one patient moves them and how much noise hides it.
It is done twice: with every patient in every step, and with Poisson draws so small that many
steps are empty. What may be called a deviation follows from the number of steps, not from taste.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from medfl.privacy.charges import Charge
from medfl.privacy.engine import local_optimizer, train_round
from medfl.privacy.ledger import Permit
from medfl.privacy.mechanism import Clipping, Mechanism, NoiseOrigin
from medfl.privacy.noise import SecureNormal

FALSE_ALARM = 1e-4
"""Chance that a right engine fails the test."""

ROUNDS, STEPS = 150, 10
CROPS = 4
NOISE_MULTIPLIER = 0.5
CLIP_NORM = 0.5
SMALL_SAMPLING_PROB = 0.25  # 0.42 of the steps are empty

_FIXED_PATIENTS = 2
_SIZES = (12, 20)  # of the model's two parameters
_CANARY_AXIS = 0
_CANARY_GRADIENT = 1e4
_WORLDS = ("with", "without")
_WAYS = (0, 1)  # noise changes from round to round and from step to step

# Sensitivity, mu and inclusion, and with either sampling the noise of every place and way.
_COMPARISONS = 3 + 2 * len(_WORLDS) * len(_SIZES) * len(_WAYS)
STANDARD_ERRORS = float(ndtri(1 - FALSE_ALARM / _COMPARISONS))
"""How far a figure may lie on the wrong side of its promise by chance, 4.4."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure beside the promised one.

    Attributes:
        found: The estimate.
        promised: By the mechanism.
        standard_error: Of the estimate, if the promise is kept.
    """

    found: float
    promised: float
    standard_error: float

    @property
    def deviation(self) -> float:
        """How many standard errors the estimate lies above the promise."""
        return (self.found - self.promised) / self.standard_error

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return {**vars(self), "deviation": self.deviation}


@dataclass(frozen=True, kw_only=True)
class MechanismTest:
    """What was measured.

    Attributes:
        sensitivity: How far the canary moves the sum of one step, in units of the clip norm C.
        noise_std: Standard deviation of the noise in its weakest place, in units of sigma C.
        mu: Of the Gaussian mechanism that these two amount to; promised is 1 / sigma.
        inclusion: How often a Poisson draw takes the canary, q, times the sensitivity.
        noise_std_of_small_batches: Like `noise_std`, where 0.42 of the steps are empty.
        noise_origin: Where the noise came from.
        clipping: How gradients were clipped.
    """

    sensitivity: Figure
    noise_std: Figure
    mu: Figure
    inclusion: Figure
    noise_std_of_small_batches: Figure
    noise_origin: NoiseOrigin
    clipping: Clipping

    @property
    def keeps_promise(self) -> bool:
        """Whether no patient moves a step further, or under less noise, than is promised."""
        at_most = (self.sensitivity, self.mu, self.inclusion)
        at_least = (self.noise_std, self.noise_std_of_small_batches)
        return all(figure.deviation <= STANDARD_ERRORS for figure in at_most) and all(
            figure.deviation >= -STANDARD_ERRORS for figure in at_least
        )

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return {
            "sensitivity": self.sensitivity.to_dict(),
            "noise_std": self.noise_std.to_dict(),
            "mu": self.mu.to_dict(),
            "inclusion": self.inclusion.to_dict(),
            "noise_std_of_small_batches": self.noise_std_of_small_batches.to_dict(),
            "noise_origin": self.noise_origin,
            "clipping": self.clipping,
            "standard_errors": STANDARD_ERRORS,
            "steps": 2 * len(_WORLDS) * ROUNDS * STEPS,
            "keeps_promise": self.keeps_promise,
        }


def mechanism_test(*, noise_origin: NoiseOrigin, clipping: Clipping) -> MechanismTest:
    """Measure the engine of this installation.

    Args:
        noise_origin: ``operating-system`` for the noise of a hospital.
        clipping: How gradients are clipped.

    Returns:
        The figures and their verdict.
    """
    everybody = _mechanism(1.0, noise_origin=noise_origin, clipping=clipping)
    moved, weakest = _measure(everybody, only_untouched=False)
    few = _mechanism(SMALL_SAMPLING_PROB, noise_origin=noise_origin, clipping=clipping)
    # Draws differ from step to step: noise shows alone only where no patient has a gradient.
    moved_seldom, weakest_of_few = _measure(few, only_untouched=True)
    return _judge(
        everybody,
        sensitivity=moved,
        noise_std=weakest,
        inclusion=moved_seldom,
        noise_std_of_small_batches=weakest_of_few,
    )


class _Linear(nn.Module):
    """Two parameters; a crop's gradient is the crop itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(_SIZES[0]))
        self.second = nn.Parameter(torch.zeros(_SIZES[1]))

    def flat(self) -> Tensor:
        return torch.cat([self.first, self.second])


def _mechanism(sampling_prob: float, *, noise_origin: NoiseOrigin, clipping: Clipping) -> Mechanism:
    return Mechanism(
        sampling_prob=sampling_prob,
        noise_multiplier=NOISE_MULTIPLIER,
        clip_norm=CLIP_NORM,
        clipping=clipping,
        local_steps=STEPS,
        declared_patients=_FIXED_PATIENTS + 1,
        noise_origin=noise_origin,
    )


def _judge(
    mechanism: Mechanism,
    *,
    sensitivity: float,
    noise_std: float,
    inclusion: float,
    noise_std_of_small_batches: float,
) -> MechanismTest:
    """Put the promise and its standard error beside each figure."""
    sigma, q, steps = NOISE_MULTIPLIER, SMALL_SAMPLING_PROB, ROUNDS * STEPS
    # A difference of two means over all steps; with Poisson draws, one of coins as well.
    of_sensitivity = sigma * math.sqrt(2 / steps)
    of_inclusion = math.sqrt((2 * sigma**2 + q * (1 - q)) / steps)
    of_noise, of_free_noise = _relative_error(min(_SIZES)), _relative_error(min(_SIZES) // 2)
    return MechanismTest(
        sensitivity=Figure(found=sensitivity, promised=1.0, standard_error=of_sensitivity),
        noise_std=Figure(found=noise_std, promised=1.0, standard_error=of_noise),
        mu=Figure(
            found=sensitivity / (sigma * noise_std) if noise_std > 0 else math.inf,
            promised=1 / sigma,
            standard_error=math.hypot(of_sensitivity, of_noise) / sigma,
        ),
        inclusion=Figure(found=inclusion, promised=q, standard_error=of_inclusion),
        noise_std_of_small_batches=Figure(
            found=noise_std_of_small_batches, promised=1.0, standard_error=of_free_noise
        ),
        noise_origin=mechanism.noise_origin,
        clipping=mechanism.clipping,
    )


def _relative_error(coordinates: int) -> float:
    """Standard error of a standard deviation over its value: 1 / sqrt(2 degrees of freedom)."""
    between_rounds = (ROUNDS - 1) * STEPS * coordinates
    between_steps = ROUNDS * (STEPS - 1) * coordinates
    return 1 / math.sqrt(2 * min(between_rounds, between_steps))


def _measure(mechanism: Mechanism, *, only_untouched: bool) -> tuple[float, float]:
    """How far the canary moves the mean sum, and the weakest noise, in units of C and sigma C."""
    sums = {world: _released_sums(mechanism, world=world) for world in _WORLDS}
    means = {world: float(sums[world][0][..., _CANARY_AXIS].mean()) for world in _WORLDS}
    moved = (means["with"] - means["without"]) / mechanism.clip_norm
    weakest = min(
        _noise_std(values[..., size // 2 :] if only_untouched else values)
        for by_parameter in sums.values()
        for values, size in zip(by_parameter, _SIZES, strict=True)
    )
    return moved, weakest / mechanism.noise_std


def _noise_std(sums: Tensor) -> float:
    """Standard deviation of what changes, be it from round to round or from step to step.

    The patients stay the same: only noise changes. Noise that repeats itself changes nothing, and
    an observer can subtract it.

    Args:
        sums: Shape (rounds, steps, coordinates).
    """
    return math.sqrt(min(float(sums.var(dim=dim).mean()) for dim in _WAYS))


def _released_sums(mechanism: Mechanism, *, world: str) -> list[Tensor]:
    """Noisy sums of every step, of shape (rounds, steps, coordinates) for each parameter."""
    patients = _patients(canary=world == "with")
    sums = torch.stack(
        [_round(mechanism, patients, _source(mechanism, world, n)) for n in range(ROUNDS)]
    )
    return list(sums.split(_SIZES, dim=2))


def _round(mechanism: Mechanism, patients: list[Tensor], source: SecureNormal) -> Tensor:
    network = _Linear()
    path = [network.flat().detach().clone()]
    train_round(
        network,
        mechanism=mechanism,
        permit=Permit(Charge(mechanism=mechanism, steps=STEPS)),
        population=len(patients),
        loss_of=lambda index: (patients[index] @ network.flat()).mean(),
        optimizer=local_optimizer(network, kind="sgd", learning_rate=1.0),
        source=source,
        proximal_mu=0.0,
        on_step=lambda *_: path.append(network.flat().detach().clone()),
    )
    return -torch.stack(path).double().diff(dim=0) * mechanism.divisor


def _patients(*, canary: bool) -> list[Tensor]:
    """Crops of every patient, of shape (crops, coordinates).

    Half of each parameter belongs to the fixed patients, without the canary's axis; in the other
    half nobody has a gradient. Without the canary its place is empty: it has no gradient at all.
    """
    generator = torch.Generator().manual_seed(3)
    touched = torch.cat([torch.arange(size) < size // 2 for size in _SIZES])
    touched[_CANARY_AXIS] = False
    shape = (_FIXED_PATIENTS, CROPS, sum(_SIZES))
    crops = torch.randn(shape, generator=generator) * touched
    own = torch.zeros(CROPS, sum(_SIZES))
    own[:, _CANARY_AXIS] = _CANARY_GRADIENT if canary else 0.0
    return [*crops, own]


def _source(mechanism: Mechanism, world: str, round_number: int) -> SecureNormal:
    """A stream of its own for every round."""
    if mechanism.noise_origin == "seeded":
        few = mechanism.sampling_prob < 1
        return SecureNormal.seeded("mechanism test", world, round_number, int(few))
    return SecureNormal.from_operating_system()
