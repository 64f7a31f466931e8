"""`Mechanism`: the one source of everything that privacy depends on.

Sampler, clipper, noise, divisor and accounting event are all built from this frozen value, so they
cannot disagree. It holds public parameters only; who was drawn and what was computed are secrets
that pass as arguments elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import dp_accounting

Clipping = Literal["fixed", "normalised"]
NoiseOrigin = Literal["operating-system", "seeded"]
Adjacency = Literal["zero-out"]

REVISION = 2
"""Of the engine here: patients share no randomness, and noisy sums lie on a fixed grid."""

FIRST_REVISION = 1
"""Of medfl 0.1, whose promises were too small; see `medfl.privacy.accounting.reassessment`."""

# What float32 can honour. Far inside of these bounds no product of two of them, and no step of the
# grid over the divisor, leaves float32's normal numbers.
MIN_CLIP_NORM, MAX_CLIP_NORM = 1e-6, 1e6
MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 1e-3, 1e6
MIN_SAMPLING_PROB = 1e-6
MAX_COUNT = 10**7

_GRID_BITS = 20


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """The Poisson-subsampled Gaussian mechanism of DP-SGD over patients, for one round at one site.

    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, with the patient
    as the example and a constant divisor.

    Attributes:
        sampling_prob: q, the probability that a patient takes part in a step, at least 1e-6.
        noise_multiplier: sigma; the noise on a step's sum has standard deviation sigma * clip_norm.
            Zero marks a baseline without privacy, whose epsilon is infinite; otherwise 1e-3 to 1e6.
        clip_norm: C, the largest Euclidean norm of one patient's gradient, 1e-6 to 1e6.
        clipping: ``fixed`` scales down to C; ``normalised`` first maps g to C g / (|g| + 0.01)
            (Bu et al., arXiv 2206.07136).
        local_steps: Noisy steps of one round, empty batches included; at most 10^7.
        declared_patients: n, public; at most 10^7.
        noise_origin: ``seeded`` exists for simulation and tests and is written into the event.
        adjacency: ``zero-out``: a patient's gradient is replaced by nothing, n is public.
        revision: Of the engine that runs it; values without one come from the first.

    Raises:
        ValueError: If a parameter is outside its range.
    """

    sampling_prob: float
    noise_multiplier: float
    clip_norm: float
    clipping: Clipping
    local_steps: int
    declared_patients: int
    noise_origin: NoiseOrigin = "operating-system"
    adjacency: Adjacency = "zero-out"
    revision: int = REVISION

    def __post_init__(self) -> None:
        for name in ("sampling_prob", "noise_multiplier", "clip_norm"):
            value = getattr(self, name)
            _expect(f"a finite {name}", value, type(value) is float and math.isfinite(value))
        for name in ("local_steps", "declared_patients"):
            value = getattr(self, name)
            _expect(f"a whole {name} >= 1", value, type(value) is int and value >= 1)
        _expect("sampling_prob in (0, 1]", self.sampling_prob, 0 < self.sampling_prob <= 1)
        _expect("noise_multiplier >= 0", self.noise_multiplier, self.noise_multiplier >= 0)
        _expect("clip_norm > 0", self.clip_norm, self.clip_norm > 0)
        known = type(self.revision) is int and FIRST_REVISION <= self.revision <= REVISION
        _expect(f"a revision in [{FIRST_REVISION}, {REVISION}]", self.revision, known)
        if self.revision != FIRST_REVISION:  # old charges have to be read as they are
            self._check_what_float32_can_honour()
        _expect("a known clipping", self.clipping, self.clipping in ("fixed", "normalised"))
        _expect(
            "a known noise_origin",
            self.noise_origin,
            self.noise_origin in ("operating-system", "seeded"),
        )
        _expect("adjacency 'zero-out'", self.adjacency, self.adjacency == "zero-out")

    def _check_what_float32_can_honour(self) -> None:
        bounds = {
            "sampling_prob": (MIN_SAMPLING_PROB, 1.0),
            "clip_norm": (MIN_CLIP_NORM, MAX_CLIP_NORM),
            "local_steps": (1, MAX_COUNT),
            "declared_patients": (1, MAX_COUNT),
        }
        if self.is_private:
            bounds["noise_multiplier"] = (MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER)
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            _expect(f"{name} in [{least:g}, {most:g}]", value, least <= value <= most)

    @property
    def divisor(self) -> float:
        """L = q n, the constant by which every noisy sum is divided."""
        return self.sampling_prob * self.declared_patients

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on one coordinate of a step's sum of gradients."""
        return self.noise_multiplier * self.clip_norm

    @property
    def grid(self) -> float:
        """Distance between neighbouring values of a released sum, a power of two.

        The largest power of two that is at most sigma C, over 2^20; it depends on sigma C alone. A
        baseline without noise takes C in its place.
        """
        _, exponent = math.frexp(self.noise_std if self.is_private else self.clip_norm)
        return math.ldexp(1.0, exponent - 1 - _GRID_BITS)

    @property
    def is_private(self) -> bool:
        """False for the baseline without noise."""
        return self.noise_multiplier > 0

    def event(self, *, steps: int) -> dp_accounting.DpEvent:
        """The accounting event of `steps` noisy steps.

        Args:
            steps: Noisy steps, empty batches included; zero or more.

        Returns:
            The event for an accountant with the add-or-remove-one relation, which gives the same
            epsilon as zero-out.
        """
        if not self.is_private:
            return dp_accounting.NonPrivateDpEvent()
        step = dp_accounting.PoissonSampledDpEvent(
            self.sampling_prob, dp_accounting.GaussianDpEvent(self.noise_multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(step, steps)

    def to_dict(self) -> dict[str, Any]:
        """The parameters as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; values from before there were revisions are of the first.

        Raises:
            ValueError: If a key is missing or unknown, or a value is outside its range.
        """
        values = {"revision": FIRST_REVISION, **values}
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            raise ValueError(
                f"Expected the mechanism's keys {sorted(expected)}, found {sorted(values)}."
            )
        return cls(**values)


def _expect(rule: str, value: object, holds: bool) -> None:
    if not holds:
        raise ValueError(f"Expected {rule}, found {value!r}.")
