"""What ``audit.json`` says, where a run was attacked on purpose."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from medfl.runs.records import (
    Count,
    Finite,
    Fraction,
    Loss,
    NoiseOrigin,
    Probability,
    Record,
    Variant,
)

Number = Annotated[float, BeforeValidator(lambda value: float(value) if value == "inf" else value)]
Correlation = Annotated[float, Field(ge=-1, le=1)]

PICTURE = "audit/inversion.png"
"""Where a run folder keeps the picture of the recovered patient."""


class Measured(Record):
    """A figure of the mechanism test; an end that is open is None."""

    name: str
    found: Number
    promised: float
    at_least: float | None
    at_most: Number | None
    holds: bool


class MechanismFindings(Record):
    """What was measured of the engine."""

    figures: tuple[Measured, ...] = Field(min_length=1)
    noise_origin: NoiseOrigin
    clipping: Literal["fixed", "normalised"]
    steps: Count
    values: Count
    keeps_promise: bool


class PathCounts(Record):
    """Patients who were taken away in turn, from the files to the sum of a step."""

    removals: Count
    largest: Finite
    worlds: Count
    changed: Count
    off_grid: Count
    failures: Count


class SitePathFindings(PathCounts):
    """Those of one site."""

    site: str


class PathFindings(PathCounts):
    """Those of all sites together, and of each."""

    sites: tuple[SitePathFindings, ...]
    keeps_promise: bool


class UpdateFindings(Record):
    """One update, read bit for bit."""

    weights: Count
    off_grid: Count
    odd: Count
    noise_std: Finite
    odd_reach: Finite
    least_noise_std: Finite
    keeps_promise: bool


class ShownLoss(Record):
    """What guesses about canaries prove, or could have."""

    epsilon: Loss
    mu: Loss
    epsilon_of_mu: Loss


class EstimatedLoss(Record):
    """An estimate, no bound."""

    mu: Loss
    mu_low: Loss
    mu_high: Loss
    epsilon: Loss
    epsilon_low: Loss
    epsilon_high: Loss


class CanaryFindings(Record):
    """Canary patients in a small federation of the same installation."""

    claimed_epsilon: Loss
    claimed_mu: Loss
    delta: float
    confidence: Fraction
    canaries: Count
    guessed: Count
    correct: Count
    shown: ShownLoss
    largest_showable: ShownLoss
    estimate: EstimatedLoss
    consistent: bool


class MembershipRates(Record):
    """How well losses told members from others."""

    members: Count
    non_members: Count
    auc: Fraction
    auc_low: Fraction
    auc_high: Fraction
    tpr: Fraction
    tpr_low: Fraction
    tpr_high: Fraction
    fpr_high: Fraction
    smallest_fpr: Fraction
    advantage: Fraction
    advantage_by_chance: Fraction


class AttackBound(Record):
    """The best attack that the mechanism allows."""

    mu: Loss
    membership_advantage: Fraction
    tpr_at_1_percent_fpr: Fraction


class MembershipFindings(Record):
    """One model attacked by its losses."""

    variant: Variant
    rates: MembershipRates
    bound: AttackBound
    largest_tpr: Fraction
    verdict: Literal["consistent", "violated"]


class InversionFindings(Record):
    """A synthetic patient recovered from one update."""

    correlation_without_noise: Correlation
    correlation_with_noise: Correlation
    noise_over_signal: Loss
    epsilon: Loss
    delta: Probability
    noise_origin: NoiseOrigin


class Audit(Record):
    """All of ``audit.json``."""

    passed: bool
    mechanism: MechanismFindings
    path: PathFindings
    update: UpdateFindings
    path_of_run: PathFindings | None
    canaries: CanaryFindings
    membership: tuple[MembershipFindings, ...]
    inversion: InversionFindings
