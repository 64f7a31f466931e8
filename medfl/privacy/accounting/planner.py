"""The planner: from a study's target epsilon to the noise of each site.

`medfl plan`, the simulation and a site's own answer to a proposal all use this code, so that a plan
never promises what a ledger would refuse. No image is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medfl.config import SiteConfig, StudyConfig
from medfl.config.aggregation import StudyAggregation
from medfl.errors import BudgetExceeded
from medfl.privacy.accounting.accountant import Charge, lifetime_epsilon, noise_multiplier_for
from medfl.privacy.ledger.ledger import TOLERANCE
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.policy import share_floor

History = Sequence[Sequence[Charge]]
"""Charges of earlier studies, one sequence a study."""

Benefit = Literal["usable", "weak", "none"]
"""What private training may be expected to add to a public starting point."""

MOST_STEPS = 100_000
"""`SitePlan.steps_until_spent` counts no further."""

_DRAWS = 200_000

# Noise-to-signal ratios; `expected_benefit` says where they come from.
USABLE_BELOW = 6.0
NO_BENEFIT_FROM = 10.0


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What one study costs one site.

    Attributes:
        site: Name of the site.
        mechanism: The mechanism of the run; see `Mechanism.in_round`.
        rounds: Rounds of the study.
        weight: Public weight of the site's update.
        delta: Delta at which every epsilon here is read.
        epsilon: Lifetime epsilon after the study; infinite for a baseline without noise.
        epsilon_before: Lifetime epsilon before it.
        epsilon_budget: The site's lifetime budget.
        history: Charges of the site's earlier studies, on which the lifetime builds.
    """

    site: str
    mechanism: Mechanism
    rounds: int
    weight: float
    delta: float
    epsilon: float
    epsilon_before: float
    epsilon_budget: float
    history: tuple[tuple[Charge, ...], ...]

    @property
    def total_steps(self) -> int:
        """T, the noisy steps of all rounds."""
        return self.rounds * self.mechanism.local_steps

    @property
    def noise_per_coordinate(self) -> float:
        """Noise that this site adds in one step, per coordinate and in units of C.

        sigma / (q n), or what of it is this site's share.
        """
        return self.mechanism.share_std / self.mechanism.clip_norm / self.mechanism.divisor

    def epsilon_after(self, steps: int) -> float:
        """Lifetime epsilon once so many noisy steps of the study are done.

        Args:
            steps: Zero or more; may exceed those of the study.

        Returns:
            What the site's ledger will count; infinite for a baseline without noise.
        """
        return _lifetime(
            self.history,
            self.mechanism,
            steps=steps,
            delta=self.delta,
            budget=self.epsilon_budget,
        )

    def steps_until_spent(self) -> int:
        """Noisy steps of this mechanism, the study's included, that the lifetime budget pays for.

        Returns:
            The largest number of steps that the site's ledger would accept as it is now; no more
            than `MOST_STEPS`, and 0 for a baseline without noise.
        """
        limit = self.epsilon_budget + TOLERANCE
        paid, beyond = 0, min(self.total_steps, MOST_STEPS)
        while self.epsilon_after(beyond) <= limit:
            if beyond == MOST_STEPS:
                return MOST_STEPS
            paid, beyond = beyond, min(2 * beyond, MOST_STEPS)
        while beyond - paid > 1:
            middle = (paid + beyond) // 2
            if self.epsilon_after(middle) <= limit:
                paid = middle
            else:
                beyond = middle
        return paid


def plan_site(
    study: StudyConfig,
    site: SiteConfig,
    *,
    history: History = (),
    private: bool = True,
    noise_multiplier: float = 0.0,
) -> SitePlan:
    """Choose the noise with which the study stays within its target and the site's budget.

    Args:
        study: The proposal.
        site: The site's file.
        history: What the site's ledger was charged before, study by study.
        private: False for the baseline without noise.
        noise_multiplier: At least so much, where other sites of a secure sum need more.

    Returns:
        The plan; its noise multiplier is at least the floor of the site's policy.

    Raises:
        BudgetExceeded: If no noise, however large, fits what is left of the budget.
    """
    policy = site.privacy
    charges = tuple(tuple(charges) for charges in history)
    before = lifetime_epsilon(charges, delta=policy.delta, budget=policy.epsilon)
    sigma = 0.0
    if private:
        own = _noise_multiplier(study, site, history=charges)
        floor = share_floor(site, honest_sites=study.honest_sites)
        sigma = max(own, floor, noise_multiplier)
    mechanism = Mechanism(
        sampling_prob=study.privacy.sampling_prob,
        noise_multiplier=sigma,
        clip_norm=study.privacy.clip_norm,
        clipping=study.privacy.clipping,
        local_steps=study.training.local_steps,
        declared_patients=site.declared_patients,
        noise_origin=study.privacy.noise,
        clip_norm_schedule=study.clip_norm_schedule,
        trust=study.privacy.trust,
        honest_sites=study.honest_sites,
    )
    return SitePlan(
        site=site.name,
        mechanism=mechanism,
        rounds=study.training.rounds,
        weight=site.weight,
        delta=policy.delta,
        epsilon=_lifetime(
            charges,
            mechanism,
            steps=study.total_steps,
            delta=policy.delta,
            budget=policy.epsilon,
        ),
        epsilon_before=before,
        epsilon_budget=policy.epsilon,
        history=charges,
    )


def averaged_noise(plans: Sequence[SitePlan]) -> float:
    """Noise on one step of the averaged update, per coordinate and in units of C.

    The sites' noise is independent: sqrt(sum_i (w_i s_i / (q_i n_i))^2) / sum_i w_i, where s_i is
    sigma_i, or sigma / sqrt(h) in a secure sum whose noise is sure to hold h shares: there the
    weights are the patients, which leaves sigma sqrt(K / h) / (q N) with K sites that stay.
    """
    total = sum(plan.weight for plan in plans)
    return math.hypot(*(plan.weight * plan.noise_per_coordinate for plan in plans)) / total


def combined_noise(plans: Sequence[SitePlan], *, aggregation: StudyAggregation) -> float:
    """Noise on one step of what the study's rule makes of the sites' updates, as `averaged_noise`.

    A median and a trimmed mean of independent Gaussian noise have no closed form where the sites'
    noise differs, so their standard deviation is estimated from `_DRAWS` draws of a fixed
    generator, to about 0.2 %; a median of many equal sites has sqrt(pi / 2) times the noise of
    their mean. Krum passes one site's update on: the noise is that of the quietest site, which is
    the nearest to all others where noise decides the distances.

    Args:
        plans: Of the sites that take part.
        aggregation: The study's.
    """
    if not aggregation.is_robust or len(plans) < aggregation.min_sites:
        return averaged_noise(plans)
    noise = np.array([plan.noise_per_coordinate for plan in plans])
    if aggregation.strategy == "krum":
        return float(noise.min())
    if not np.isfinite(noise).all():
        return math.inf
    draws = np.random.default_rng(0).standard_normal((_DRAWS, len(plans))) * noise
    if aggregation.strategy == "median":
        return float(np.median(draws, axis=1).std())
    cut = aggregation.faulty_sites
    return float(np.sort(draws, axis=1)[:, cut : len(plans) - cut].mean(axis=1).std())


def equal_steps(study: StudyConfig) -> float:
    """So many steps of one size have the noise-to-signal ratio of this study's.

    With schedules a step of round r moves the model by at most a_r = C_r times both learning rates
    of the round. Signals add up to the sum of all a_r at most, noise to the root of the sum of
    their squares: the ratio of (sum a_r)^2 / sum a_r^2 equal rounds, which are fewer. An Adam at
    the server undoes part of what changes slowly, so that this is again pessimistic.

    Returns:
        T, the local steps of all rounds, where nothing changes; else less.
    """
    schedules = [
        schedule.over(study.training.rounds)
        for schedule in (
            study.privacy.clip_norm_schedule,
            study.training.learning_rate_schedule,
            study.aggregation.server_learning_rate_schedule,
        )
        if not schedule.is_constant
    ]
    if not schedules:
        return study.total_steps
    sizes = [
        math.prod(schedule.factor(number) for schedule in schedules)
        for number in range(1, study.training.rounds + 1)
    ]
    rounds = math.fsum(sizes) ** 2 / math.fsum(size * size for size in sizes)
    return rounds * study.training.local_steps


def noise_to_signal(noise_per_coordinate: float, *, steps: float, parameters: int) -> float:
    """Norm of a study's noise over the largest norm that its signal can have: nu sqrt(d / T).

    A step's mean of clipped gradients has a norm of at most C, so T steps move a model by at most
    T C, where all of them agree. The independent Gaussian noise of T steps adds up to a vector of
    norm nu C sqrt(d T). Their ratio does not depend on C or on the learning rate. Both norms are
    pessimistic in part: gradients never all agree, but most directions of the noise matter little.

    Args:
        noise_per_coordinate: nu, of one step and in units of C: of one site, or `averaged_noise`.
        steps: T, the noisy steps of the study; with schedules its `equal_steps`.
        parameters: d, trainable parameters of the network.

    Returns:
        The ratio.
    """
    return noise_per_coordinate * math.sqrt(parameters / steps)


def expected_benefit(ratio: float) -> Benefit:
    """What a noise-to-signal ratio has meant for the Dice score so far: a rule of thumb.

    The thresholds lie between runs at epsilon 8 of pretrained SegResNets, all of whose 109 k and
    178 k parameters were trained. At 4 (the demo) private training gained 0.17 in Dice of the whole
    tumour over its starting point, most of what it gains without noise. At 9 (four hospitals of
    TCGA-LGG together) it gained 0.03, with an interval that holds zero. At 11 to 33 (each of these
    hospitals alone) it gained 0.07 on average, and 0.04 in a run before. Networks and tasks that
    are further away may differ.

    Args:
        ratio: As `noise_to_signal` gives it.

    Returns:
        ``usable`` below 6, ``weak`` below 10, else ``none``.
    """
    if ratio < USABLE_BELOW:
        return "usable"
    return "weak" if ratio < NO_BENEFIT_FROM else "none"


def _lifetime(
    history: History, mechanism: Mechanism, *, steps: int, delta: float, budget: float
) -> float:
    study = [Charge(mechanism=mechanism.as_counted, steps=steps)] if steps else []
    return lifetime_epsilon([*history, study], delta=delta, budget=budget)


def _noise_multiplier(study: StudyConfig, site: SiteConfig, *, history: History) -> float:
    policy = site.privacy
    target = min(study.privacy.epsilon, policy.epsilon)
    q, steps = study.privacy.sampling_prob, study.total_steps
    try:
        for_study = noise_multiplier_for(
            epsilon=target, delta=policy.delta, sampling_prob=q, steps=steps
        )
    except BudgetExceeded:
        raise BudgetExceeded(
            f"Site {site.name}: expected a noise multiplier with which {steps} steps at "
            f"sampling_prob {q:g} cost at most epsilon {target:g} at delta {policy.delta:g}, found "
            "none."
        ) from None
    if not history:
        return max(for_study, policy.min_noise_multiplier)
    try:
        for_lifetime = noise_multiplier_for(
            epsilon=policy.epsilon,
            delta=policy.delta,
            sampling_prob=q,
            steps=steps,
            prior_studies=history,
            budget=policy.epsilon,
        )
    except BudgetExceeded as error:
        raise BudgetExceeded(f"Site {site.name}: {error}") from None
    return max(for_study, for_lifetime, policy.min_noise_multiplier)
