"""`mechanism_test`: what an observer can measure of the engine, beside what it promises.

Canary patients with huge gradients take part in one world and not in the other. From the released
sums alone an estimator reads how far one patient moves them and how much noise hides it; that the
noise is what the accounting takes it for, and the draws, is measured with it. It is done twice:
with every patient in every step, and with Poisson draws so small that many steps are empty. What
may be called a deviation follows from the number of steps, not from taste.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtri

from medfl.audit import noise_figures
from medfl.audit.draw_figures import draw_figures
from medfl.audit.figure import SHARE, Figure, none_of
from medfl.audit.noise_figures import Noise
from medfl.audit.probe import (
    AXIS,
    FIXED_PATIENTS,
    WEIGHTS,
    WORLDS,
    Watched,
    probe_patients,
    spread_direction,
    watch_rounds,
)
from medfl.audit.released_integers import Int64Array
from medfl.privacy.mechanism import Clipping, Mechanism, NoiseOrigin

ROUNDS, STEPS = 24, 10
NOISE_MULTIPLIER = 0.125
CLIP_NORM = 0.5  # sigma C is a power of two: the integers stay well below 2^23
SMALL_SAMPLING_PROB = 0.25  # 0.32 of the steps are empty

POPULATION = 20
DRAWN_ROUNDS = 30

_PATIENTS = FIXED_PATIENTS + 2
_DECLARED = 5  # public, and no power of two: the divisor's rounding is part of what is checked


@dataclass(frozen=True, kw_only=True)
class MechanismProbe:
    """What was measured.

    Attributes:
        figures: Each beside its promise.
        noise_origin: Where the noise came from.
        clipping: How gradients were clipped.
        steps: Noisy steps that were looked at.
        values: Released integers that were looked at.
    """

    figures: tuple[Figure, ...]
    noise_origin: NoiseOrigin
    clipping: Clipping
    steps: int
    values: int

    @property
    def keeps_promise(self) -> bool:
        """Whether every figure is what is promised, as far as chance allows."""
        return not self.broken

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the figures that are not."""
        return tuple(figure.name for figure in self.figures if not figure.holds)

    def __getitem__(self, name: str) -> Figure:
        """A figure by its name.

        Raises:
            KeyError: If there is none.
        """
        return {figure.name: figure for figure in self.figures}[name]

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return {
            "figures": [figure.to_dict() for figure in self.figures],
            "noise_origin": self.noise_origin,
            "clipping": self.clipping,
            "steps": self.steps,
            "values": self.values,
            "keeps_promise": self.keeps_promise,
        }


def probe_mechanism(*, noise_origin: NoiseOrigin, clipping: Clipping) -> MechanismProbe:
    """Measure the engine of this installation.

    Args:
        noise_origin: ``operating-system`` for the noise of a hospital.
        clipping: How gradients are clipped.

    Returns:
        The figures and their verdict.
    """
    everybody = _mechanism(1.0, noise_origin=noise_origin, clipping=clipping)
    few = _mechanism(SMALL_SAMPLING_PROB, noise_origin=noise_origin, clipping=clipping)
    always, seldom = _both_worlds(everybody), _both_worlds(few)
    drawn = watch_rounds(
        few, [torch.zeros(1, WEIGHTS)] * POPULATION, rounds=DRAWN_ROUNDS, world="draws"
    )
    watched = [*always.values(), *seldom.values(), drawn]
    figures = (
        *_how_far(everybody, always=always, seldom=seldom),
        *_noise(everybody, few, always=always, seldom=seldom),
        *draw_figures(
            drawn.took_part(POPULATION),
            batches=[batch for each in watched for batch in each.drawn],
            probability=SMALL_SAMPLING_PROB,
            steps=STEPS,
        ),
        none_of("irregular_rounds", sum(each.irregular for each in watched)),
        none_of("off_grid", sum(each.off_grid for each in watched)),
    )
    steps = sum(len(each.steps) for each in watched)
    return MechanismProbe(
        figures=figures,
        noise_origin=noise_origin,
        clipping=clipping,
        steps=steps,
        values=steps * WEIGHTS,
    )


def _mechanism(sampling_prob: float, *, noise_origin: NoiseOrigin, clipping: Clipping) -> Mechanism:
    return Mechanism(
        sampling_prob=sampling_prob,
        noise_multiplier=NOISE_MULTIPLIER,
        clip_norm=CLIP_NORM,
        clipping=clipping,
        local_steps=STEPS,
        declared_patients=_DECLARED,
        noise_origin=noise_origin,
    )


def _both_worlds(mechanism: Mechanism) -> dict[str, Watched]:
    return {
        world: watch_rounds(
            mechanism, probe_patients(canaries=world == "with"), rounds=ROUNDS, world=world
        )
        for world in WORLDS
    }


def _how_far(
    mechanism: Mechanism, *, always: dict[str, Watched], seldom: dict[str, Watched]
) -> tuple[Figure, ...]:
    """How far the canaries move a step, in units of C, and the mu that this amounts to."""
    sigma, q, steps = NOISE_MULTIPLIER, SMALL_SAMPLING_PROB, ROUNDS * STEPS
    axis, spread = _moved(always, mechanism)
    inclusion = max(_moved(seldom, mechanism))
    # A difference of two means over all steps; with Poisson draws, one of coins as well.
    of_move = sigma * math.sqrt(2 / steps)
    of_inclusion = math.sqrt((2 * sigma**2 + q * (1 - q)) / steps)
    noise = noise_figures.weakest_place("", _noises(always, mechanism), only_untouched=False)
    z = float(ndtri(1 - SHARE / 2))
    return (
        Figure(name="sensitivity", found=axis, promised=1.0, at_most=1 + z * of_move),
        Figure(name="sensitivity_spread", found=spread, promised=1.0, at_most=1 + z * of_move),
        Figure(
            name="mu",
            found=max(axis, spread) / (sigma * noise.found) if noise.found > 0 else math.inf,
            promised=1 / sigma,
            at_most=(1 + z * of_move) / (sigma * noise.at_least),
        ),
        Figure(name="inclusion", found=inclusion, promised=q, at_most=q + z * of_inclusion),
    )


def _noise(
    everybody: Mechanism,
    few: Mechanism,
    *,
    always: dict[str, Watched],
    seldom: dict[str, Watched],
) -> tuple[Figure, ...]:
    constant, varied = _noises(always, everybody), _noises(seldom, few)
    worlds = [*constant, *varied]
    took_part = [watched.took_part(_PATIENTS) for watched in seldom.values()]
    integers = [_integers(watched, everybody) for watched in always.values()]
    of_few = [_integers(watched, few) for watched in seldom.values()]
    return (
        noise_figures.weakest_place("noise_std", constant, only_untouched=False),
        # Draws differ from step to step: noise shows alone only where no patient has a gradient.
        noise_figures.weakest_place("noise_std_of_small_batches", varied, only_untouched=True),
        noise_figures.weakest_step(worlds),
        noise_figures.in_common(worlds),
        *noise_figures.between_weights(constant),
        *noise_figures.between_steps(worlds),
        noise_figures.shifted(worlds),
        *noise_figures.normality(worlds),
        noise_figures.apart_from_draws(list(zip(varied, took_part, strict=True))),
        noise_figures.low_bits([*integers, *of_few]),
        noise_figures.low_bits_by_draw(list(zip(of_few, took_part, strict=True))),
    )


def _moved(worlds: dict[str, Watched], mechanism: Mechanism) -> tuple[float, float]:
    """How far each canary moves the mean sum along its direction, in units of C."""
    means = [
        _integers(worlds[world], mechanism).reshape(-1, WEIGHTS).mean(axis=0) for world in WORLDS
    ]
    moved = (means[0] - means[1]) * (mechanism.grid / mechanism.clip_norm)
    return float(moved[AXIS]), float(moved @ spread_direction().double().numpy())


def _noises(worlds: dict[str, Watched], mechanism: Mechanism) -> list[Noise]:
    return [Noise.of(_integers(watched, mechanism), mechanism) for watched in worlds.values()]


def _integers(watched: Watched, mechanism: Mechanism) -> Int64Array:
    return watched.integers(mechanism)
