"""`Mechanism`: the one source of everything that privacy depends on.

Sampler, clipper, noise, divisor and accounting event are all built from this frozen value, so they
cannot disagree. It holds public parameters only; who was drawn and what was computed are secrets
that pass as arguments elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import dp_accounting

from medfl.config.schedule import RoundSchedule
from medfl.config.site import Trust
from medfl.config.study_privacy import MIN_CLIP_NORM

Clipping = Literal["fixed", "normalised"]
NoiseOrigin = Literal["operating-system", "seeded"]
Adjacency = Literal["zero-out"]

REVISION = 2
"""Of the engine here: patients share no randomness, and noisy sums lie on a fixed grid."""

FIRST_REVISION = 1
"""Of medfl 0.1, whose promises were too small; see `medfl.privacy.accounting.reassessment`."""

# What float32 can honour. Far inside of these bounds no product of two of them, and no step of the
# grid over the divisor, leaves float32's normal numbers.
MAX_CLIP_NORM = 1e6
MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 1e-3, 1e6
MIN_SAMPLING_PROB = 1e-6
MAX_COUNT = 10**7

MAX_SITES = 10**4

_GRID_BITS = 20
# What entries that do not say it mean.
_WITHOUT_A_WORD: dict[str, Any] = {
    "revision": FIRST_REVISION,
    "clip_norm_schedule": None,
    "trust": "local",
    "honest_sites": 1,
}


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """The Poisson-subsampled Gaussian mechanism of DP-SGD over patients, at one site.

    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, with the patient
    as the example and a constant divisor.

    What a site agrees to may have a clip norm that changes from round to round; what a round runs,
    and what is charged for it, is the mechanism `in_round`, whose clip norm is a plain number. The
    schedule costs nothing: C_r of round r is public and fixed before the run, the noise of its
    steps has the standard deviation sigma C_r, and dividing a step's release by the constant C_r
    gives the mechanism with clip norm 1 and noise sigma. So every step has the same privacy loss,
    and T steps compose, adaptively, as they do under one clip norm. A clip norm that followed from
    patients' gradients would be a release of its own; there is none.

    Attributes:
        sampling_prob: q, the probability that a patient takes part in a step, at least 1e-6.
        noise_multiplier: sigma; the noise on a step's sum has standard deviation sigma * clip_norm.
            Zero marks a baseline without privacy, whose epsilon is infinite; otherwise 1e-3 to 1e6.
        clip_norm: C, the largest Euclidean norm of one patient's gradient, 1e-6 to 1e6; with a
            schedule the largest of all rounds.
        clipping: ``fixed`` scales down to C; ``normalised`` first maps g to ``C g / (|g| + 0.01)``
            (Bu et al., arXiv 2206.07136).
        local_steps: Noisy steps of one round, empty batches included; at most 10^7.
        declared_patients: n, public; at most 10^7.
        noise_origin: ``seeded`` exists for simulation and tests and is written into the event.
        adjacency: ``zero-out``: a patient's gradient is replaced by nothing, n is public.
        revision: Of the engine that runs it; values without one come from the first.
        clip_norm_schedule: Of C in a whole run; None for one round, or where C stays as it is.
        trust: ``local``: the site's own noise protects what leaves it from everybody. ``secure``:
            nobody sees but the sum of several sites, each adds a share of the noise, and sigma is
            that of the sum; see `medfl.privacy.noise_shares`. A round is then one step.
        honest_sites: h, how many shares the noise of the sum is sure to hold besides those that
            colluding sites could subtract; 1 with ``local``.

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
    clip_norm_schedule: RoundSchedule | None = None
    trust: Trust = "local"
    honest_sites: int = 1

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
        self._check_trust()
        course = self.clip_norm_schedule
        if course is not None:
            least = self.clip_norm * course.least
            _expect(f"clip_norm >= {MIN_CLIP_NORM:g} in all rounds", least, least >= MIN_CLIP_NORM)

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

    def _check_trust(self) -> None:
        _expect("a known trust", self.trust, self.trust in ("local", "secure"))
        shares = self.honest_sites
        whole = type(shares) is int and 1 <= shares <= MAX_SITES
        _expect(f"honest_sites in [1, {MAX_SITES}]", shares, whole)
        if self.trust == "local":
            _expect("honest_sites = 1 with trust 'local'", shares, shares == 1)
        else:
            # Of several steps all but the last would rest on the site's own small share alone.
            _expect("local_steps = 1 with trust 'secure'", self.local_steps, self.local_steps == 1)

    def in_round(self, round_number: int) -> Self:
        """The mechanism of one round, with the clip norm that the schedule gives it.

        Args:
            round_number: From 1.

        Raises:
            ValueError: If the schedule has no such round.
        """
        if self.clip_norm_schedule is None:
            return self
        factor = self.clip_norm_schedule.factor(round_number)
        return replace(self, clip_norm=self.clip_norm * factor, clip_norm_schedule=None)

    @property
    def divisor(self) -> float:
        """L = q n, the constant by which every noisy sum is divided."""
        return self.sampling_prob * self.declared_patients

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on one coordinate of the sum that others get to see."""
        return self.noise_multiplier * self.clip_norm

    @property
    def share_std(self) -> float:
        """Standard deviation of what this site adds to it: all of it, or a share."""
        return self.noise_std / math.sqrt(self.honest_sites)

    @property
    def grid(self) -> float:
        """Distance between neighbouring values of a released sum, a power of two.

        The largest power of two that is at most sigma C, over 2^20; it depends on sigma C alone. A
        baseline without noise takes C in its place.
        """
        _, exponent = math.frexp(self.noise_std if self.is_private else self.clip_norm)
        return math.ldexp(1.0, exponent - 1 - _GRID_BITS)

    @property
    def as_counted(self) -> Self:
        """The same with everything made equal that does not enter epsilon.

        Sites that differ in nothing else then share what an accountant has computed.
        """
        return replace(
            self,
            clip_norm=1.0,
            clip_norm_schedule=None,
            local_steps=1,
            declared_patients=1,
            trust="local",
            honest_sites=1,
        )

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
        """The parameters as JSON types; without what says nothing new."""
        values = asdict(self)
        # As it always was: hashes and signatures of old entries cover these very words.
        if self.clip_norm_schedule is None:
            del values["clip_norm_schedule"]
        if self.trust == "local":
            del values["trust"], values["honest_sites"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; values from before there were revisions are of the first.

        Raises:
            ValueError: If a key is missing or unknown, or a value is outside its range.
        """
        values = _WITHOUT_A_WORD | values
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            raise ValueError(
                f"Expected the mechanism's keys {sorted(expected)}, found {sorted(values)}."
            )
        if values["clip_norm_schedule"] is not None:
            values["clip_norm_schedule"] = _schedule(values["clip_norm_schedule"])
        return cls(**values)


def _schedule(values: object) -> RoundSchedule:
    expected = set(RoundSchedule.__dataclass_fields__)
    if not isinstance(values, dict) or set(values) != expected:
        raise ValueError(f"Expected the schedule's keys {sorted(expected)}, found {values!r}.")
    return RoundSchedule(**values)


def _expect(rule: str, value: object, holds: bool) -> None:
    if not holds:
        raise ValueError(f"Expected {rule}, found {value!r}.")
