"""The planner: from a study's target epsilon to the noise of each site.

`medfl plan`, the simulation and a site's own answer to a proposal all use this code, so that a plan
never promises what a ledger would refuse. No image is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medfl.config import SiteConfig, StudyConfig
from medfl.errors import BudgetExceeded
from medfl.privacy.accountant import Charge, lifetime_epsilon, noise_multiplier_for
from medfl.privacy.mechanism import Mechanism

History = Sequence[Sequence[Charge]]
"""Charges of earlier studies, one sequence a study."""


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What one study costs one site.

    Attributes:
        site: Name of the site.
        mechanism: The mechanism of each round.
        rounds: Rounds of the study.
        weight: Public weight of the site's update.
        delta: Delta at which every epsilon here is read.
        epsilon: Lifetime epsilon after the study; infinite for a baseline without noise.
        epsilon_before: Lifetime epsilon before it.
        epsilon_budget: The site's lifetime budget.
    """

    site: str
    mechanism: Mechanism
    rounds: int
    weight: float
    delta: float
    epsilon: float
    epsilon_before: float
    epsilon_budget: float

    @property
    def total_steps(self) -> int:
        """T, the noisy steps of all rounds."""
        return self.rounds * self.mechanism.local_steps

    @property
    def noise_per_coordinate(self) -> float:
        """Noise of one step of this site, per coordinate and in units of C: sigma / (q n)."""
        return self.mechanism.noise_multiplier / self.mechanism.divisor


def plan_site(
    study: StudyConfig, site: SiteConfig, *, history: History = (), private: bool = True
) -> SitePlan:
    """Choose the noise with which the study stays within its target and the site's budget.

    Args:
        study: The proposal.
        site: The site's file.
        history: What the site's ledger was charged before, study by study.
        private: False for the baseline without noise.

    Returns:
        The plan; its noise multiplier is at least the floor of the site's policy.

    Raises:
        BudgetExceeded: If no noise, however large, fits what is left of the budget.
    """
    policy = site.privacy
    charges = [list(charges) for charges in history]
    before = lifetime_epsilon(charges, delta=policy.delta, budget=policy.epsilon)
    sigma = _noise_multiplier(study, site, history=charges) if private else 0.0
    mechanism = Mechanism(
        sampling_prob=study.privacy.sampling_prob,
        noise_multiplier=sigma,
        clip_norm=study.privacy.clip_norm,
        clipping=study.privacy.clipping,
        local_steps=study.training.local_steps,
        declared_patients=site.declared_patients,
        noise_origin=study.privacy.noise,
    )
    planned = [*charges, [Charge(mechanism=mechanism, steps=study.total_steps)]]
    return SitePlan(
        site=site.name,
        mechanism=mechanism,
        rounds=study.training.rounds,
        weight=site.weight,
        delta=policy.delta,
        epsilon=lifetime_epsilon(planned, delta=policy.delta, budget=policy.epsilon),
        epsilon_before=before,
        epsilon_budget=policy.epsilon,
    )


def averaged_noise(plans: Sequence[SitePlan]) -> float:
    """Noise on one step of the averaged update, per coordinate and in units of C.

    The sites' noise is independent: sqrt(sum_i (w_i sigma_i / (q_i n_i))^2) / sum_i w_i.
    """
    total = sum(plan.weight for plan in plans)
    return math.hypot(*(plan.weight * plan.noise_per_coordinate for plan in plans)) / total


def _noise_multiplier(study: StudyConfig, site: SiteConfig, *, history: History) -> float:
    policy = site.privacy
    for_study = noise_multiplier_for(
        epsilon=min(study.privacy.epsilon, policy.epsilon),
        delta=policy.delta,
        sampling_prob=study.privacy.sampling_prob,
        steps=study.total_steps,
    )
    if not history:
        return max(for_study, policy.min_noise_multiplier)
    try:
        for_lifetime = noise_multiplier_for(
            epsilon=policy.epsilon,
            delta=policy.delta,
            sampling_prob=study.privacy.sampling_prob,
            steps=study.total_steps,
            prior_studies=history,
            budget=policy.epsilon,
        )
    except BudgetExceeded as error:
        raise BudgetExceeded(f"Site {site.name}: {error}") from None
    return max(for_study, for_lifetime, policy.min_noise_multiplier)
