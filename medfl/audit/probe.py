"""The probe: a few patients with known gradients in the real engine, and what leaves in each step.

Weights start from zero before every step, as a hostile server could ask for, so that the integers
of each release can be read exactly. Canaries take part in one world and not in the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfl.audit.released_integers import Int64Array, read_integers
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.engine import train_round
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.privacy.patients import Patients

BoolArray = npt.NDArray[np.bool_]

CROPS = 4
CANARY_GRADIENT = 1e4
FIXED_PATIENTS = 2
WORLDS = ("with", "without")
# Two parameters of one shape, so that noise kept by shape shows, and one that is large.
SHAPES: tuple[tuple[int, ...], ...] = ((12,), (4, 5), (4, 5), (12, 16, 16))
SIZES = tuple(math.prod(shape) for shape in SHAPES)
WEIGHTS = sum(SIZES)
AXIS = 0
"""The weight along which the first canary points."""

LEARNING_RATE = 0.1  # no power of two: its rounding is part of what is checked


@dataclass(kw_only=True)
class Watched:
    """What was seen of some rounds.

    Attributes:
        steps: Integers of every release, one array of shape (weights,) a step.
        drawn: Who was computed at each step, in order.
        off_grid: Released weights that are no integer's, bit for bit.
        irregular: Rounds without exactly one permit and one release for each local step, and
            patients that were computed before their step was paid for.
    """

    steps: list[Int64Array] = field(default_factory=list)
    drawn: list[list[int]] = field(default_factory=list)
    off_grid: int = 0
    irregular: int = 0

    def integers(self, mechanism: Mechanism) -> Int64Array:
        """Shape (rounds, steps, weights)."""
        return np.stack(self.steps).reshape(-1, mechanism.local_steps, WEIGHTS)

    def took_part(self, population: int) -> BoolArray:
        """Shape (steps, population)."""
        table = np.zeros((len(self.drawn), population), dtype=np.bool_)
        for step, batch in enumerate(self.drawn):
            table[step, batch] = True
        return table


class ProbeNetwork(nn.Module):
    """Some parameters; a crop's gradient is the crop itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in SHAPES])

    def flat(self) -> Tensor:
        """All weights, shape (weights,)."""
        return torch.cat([weight.flatten() for weight in self.weights])

    @torch.no_grad()
    def clear(self) -> None:
        """Back to zero."""
        for weight in self.weights:
            weight.zero_()


class _CountingPermit(Permit):
    """The real one, counted."""

    consumed = 0

    def consume(self) -> None:
        super().consume()
        self.consumed += 1


class _CountingSGD(torch.optim.SGD):
    """torch's own, counted."""

    releases = 0

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # noqa: ARG002
        super().step()
        self.releases += 1


def spread_direction() -> Tensor:
    """Unit vector of the second canary, with the same part in every parameter."""
    direction = torch.zeros(WEIGHTS)
    ends = np.cumsum(SIZES)
    direction[ends - 1] = 1 / math.sqrt(len(SIZES))
    return direction


def probe_patients(*, canaries: bool) -> list[Tensor]:
    """Crops of the fixed patients and of both canaries, each of shape (crops, weights).

    Without canaries their places are empty: they have no gradient at all.
    """
    generator = torch.Generator().manual_seed(3)
    shape = (FIXED_PATIENTS, CROPS, WEIGHTS)
    crops = torch.randn(shape, generator=generator) * _of_fixed_patients()
    size = CANARY_GRADIENT if canaries else 0.0
    along_axis = torch.zeros(WEIGHTS)
    along_axis[AXIS] = size
    both = (along_axis, size * spread_direction())
    return [*crops, *(canary.expand(CROPS, -1) for canary in both)]


def untouched() -> BoolArray:
    """Weights in which nobody has a gradient: only noise leaves there; shape (weights,)."""
    touched = _of_fixed_patients() | (spread_direction() != 0)
    touched[AXIS] = True
    return ~touched.numpy()


def watch_rounds(
    mechanism: Mechanism, crops: Sequence[Tensor], *, rounds: int, world: str
) -> Watched:
    """Run rounds of the engine, each with a noise stream of its own."""
    watched = Watched()
    for number in range(rounds):
        _watch_round(watched, mechanism, crops, source=_source(mechanism, world, number))
    return watched


def _watch_round(
    watched: Watched, mechanism: Mechanism, crops: Sequence[Tensor], *, source: SecureNormal
) -> None:
    network = ProbeNetwork()
    permit = _CountingPermit(Charge(mechanism=mechanism, steps=mechanism.local_steps))
    optimizer = _CountingSGD(network.parameters(), lr=LEARNING_RATE)
    batches: list[list[int]] = [[] for _ in range(mechanism.local_steps)]
    released: list[npt.NDArray[np.float32]] = []

    def loss_of(index: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
        batches[len(released)].append(index)
        watched.irregular += permit.consumed != len(released) + 1
        return (crops[index] @ network.flat()).mean()

    def look(*_: int) -> None:
        released.append(network.flat().detach().numpy().copy())
        network.clear()

    train_round(
        network,
        mechanism=mechanism,
        permit=permit,
        patients=Patients(
            names=tuple(f"patient {number}" for number in range(len(crops))),
            stream="probe",
            loss_of=loss_of,
        ),
        optimizer=optimizer,
        source=source,
        proximal_mu=0.0,
        on_step=look,
    )
    counts = {permit.consumed, optimizer.releases, len(released)}
    watched.irregular += counts != {mechanism.local_steps}
    # A step that never came has released nothing, which the noise of every step does not forgive.
    released += [np.zeros(WEIGHTS, dtype=np.float32)] * (mechanism.local_steps - len(released))
    read = read_integers(
        np.stack(released[: mechanism.local_steps]),
        mechanism=mechanism,
        learning_rate=LEARNING_RATE,
    )
    watched.steps.extend(read.integers)
    watched.drawn.extend(batches)
    watched.off_grid += read.off_grid


def _source(mechanism: Mechanism, world: str, number: int) -> SecureNormal:
    if mechanism.noise_origin == "seeded":
        return SecureNormal.seeded("probe", world, number, str(mechanism.sampling_prob))
    return SecureNormal.from_operating_system()


def _of_fixed_patients() -> Tensor:
    """Half of each small parameter, without the canaries' weights; shape (weights,)."""
    by_parameter = [torch.arange(size) < (size // 2 if size < max(SIZES) else 0) for size in SIZES]
    touched = torch.cat(by_parameter)
    touched[AXIS] = False
    return touched
