"""`plan_study`: what a study costs each site and what it may bring, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medfl.config import SiteConfig, StudyConfig
from medfl.errors import BudgetExceeded, PolicyRefused
from medfl.privacy.accounting.grid import GridPlan, plan_grid
from medfl.privacy.accounting.planner import (
    Benefit,
    SitePlan,
    combined_noise,
    equal_steps,
    expected_benefit,
    noise_to_signal,
    plan_site,
)
from medfl.privacy.policy import check_study
from medfl.protocol.study_model import model_spec
from medfl.segmentation.networks import trainable_state, trained_names
from medfl.site.state import simulated_state
from medfl.study.simulation import require_distinct
from medfl.study.trust_modes import TrustModes, compare_trust_modes, with_common_noise


@dataclass(frozen=True, kw_only=True)
class PlannedNoise:
    """What noise leaves to learn from; a rule of thumb, see `expected_benefit`.

    Attributes:
        noise_per_coordinate: Of one step, per coordinate, in units of the clip norm C.
        noise_to_signal: Norm of the noise of all steps over the largest norm of their signal.
        benefit: ``usable``, ``weak`` or ``none``.
    """

    noise_per_coordinate: float
    noise_to_signal: float
    benefit: Benefit


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The plans of the sites that would take part, and who would refuse.

    Attributes:
        study: The study.
        sites: One plan a site that would take part, in the order in which they were given.
        refusals: Why another site would refuse, by its name: its policy, or its budget.
        parameters: Trained parameters of the network.
        grid: What several runs of the study cost these sites, in their order; empty for one run.
        trust_modes: The study beside itself in the other trust mode; None for fewer than two sites.
    """

    study: StudyConfig
    sites: tuple[SitePlan, ...]
    refusals: Mapping[str, PolicyRefused | BudgetExceeded]
    parameters: int
    grid: tuple[GridPlan, ...] = ()
    trust_modes: TrustModes | None = None

    @property
    def collections(self) -> tuple[str, ...]:
        """Open data whose patients the study's start has seen: no guarantee covers them."""
        return self.study.synthetic.collections if self.study.synthetic is not None else ()

    @property
    def federation(self) -> PlannedNoise | None:
        """Of the update of all sites that would take part together; None if nobody would."""
        if not self.sites:
            return None
        return self._noise(combined_noise(self.sites, aggregation=self.study.aggregation))

    def noise_of(self, plan: SitePlan) -> PlannedNoise:
        """Of the update of one site by itself, which then has to bear all of the noise."""
        mechanism = plan.mechanism
        return self._noise(mechanism.noise_std / mechanism.clip_norm / mechanism.divisor)

    def to_dict(self) -> dict[str, Any]:
        """Everything that `medfl plan --json` prints; infinite values stay floats."""
        together = self.federation
        return {
            "study": self.study.id,
            "target_epsilon": self.study.privacy.epsilon,
            "parameters": self.parameters,
            "start_collections": list(self.collections),
            "sites": [self._row(plan) for plan in self.sites],
            "refused": {name: refusal.code for name, refusal in self.refusals.items()},
            "grid": [asdict(of_site) for of_site in self.grid],
            "trust_modes": None if self.trust_modes is None else self.trust_modes.to_dict(),
            "federation": None
            if together is None
            else {
                "sites": [plan.site for plan in self.sites],
                "declared_patients": sum(p.mechanism.declared_patients for p in self.sites),
                **asdict(together),
            },
        }

    def _row(self, plan: SitePlan) -> dict[str, Any]:
        mechanism = plan.mechanism
        return {
            "site": plan.site,
            "declared_patients": mechanism.declared_patients,
            "weight": plan.weight,
            "sampling_prob": mechanism.sampling_prob,
            "noise_multiplier": mechanism.noise_multiplier,
            "clip_norm": mechanism.clip_norm,
            "clip_norm_schedule": mechanism.to_dict().get("clip_norm_schedule"),
            "divisor": mechanism.divisor,
            "rounds": plan.rounds,
            "local_steps": mechanism.local_steps,
            "steps": plan.total_steps,
            "delta": plan.delta,
            "epsilon_before": plan.epsilon_before,
            "epsilon": plan.epsilon,
            "epsilon_budget": plan.epsilon_budget,
            "steps_until_spent": plan.steps_until_spent(),
            **asdict(self.noise_of(plan)),
        }

    def _noise(self, per_coordinate: float) -> PlannedNoise:
        ratio = noise_to_signal(
            per_coordinate, steps=equal_steps(self.study), parameters=self.parameters
        )
        return PlannedNoise(
            noise_per_coordinate=per_coordinate,
            noise_to_signal=ratio,
            benefit=expected_benefit(ratio),
        )


def plan_study(
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    run_folder: Path | None = None,
    runs: int = 1,
) -> StudyPlan:
    """Plan a study from the ledgers as they are; no image is needed.

    Each site's policy is asked first. The noise of a site is the smallest whose epsilon stays
    within the study's target and what is left of the site's budget.

    Args:
        study: The study.
        sites: The sites.
        run_folder: Where open-data sites keep their ledgers; they start at zero without it.
        runs: Of the study, from here on: more than one to choose settings from.

    Returns:
        The plans; a site whose policy or budget would refuse the study is named there.

    Raises:
        ConfigError: If two sites have one name.
        LedgerError: If a hospital's ledger is missing or damaged.
        ModelError: If the network cannot be built or is unfit for DP training.
    """
    require_distinct([site.name for site in sites])
    network = model_spec(study).build(seed=study.seed)
    trained = trained_names(network, study.training.trainable)
    plans: list[SitePlan] = []
    grids: dict[str, GridPlan] = {}
    refusals: dict[str, PolicyRefused | BudgetExceeded] = {}
    for site in sites:
        try:
            check_study(study, site)
            plan = _plan(study, site, run_folder=run_folder)
            if runs > 1:
                grids[site.name] = plan_grid(plan, runs=runs)
                grids[site.name].require_fit()
        except PolicyRefused as error:
            refusals[site.name] = PolicyRefused(f"Site {site.name}: {error}", code=error.code)
        except BudgetExceeded as error:
            refusals[site.name] = error
        else:
            plans.append(plan)
    if study.privacy.trust == "secure":
        plans = with_common_noise(plans)
    parameters = sum(
        weight.numel() for name, weight in trainable_state(network).items() if name in trained
    )
    willing = [site for site in sites if site.name not in refusals]
    return StudyPlan(
        study=study,
        sites=tuple(plans),
        refusals=refusals,
        parameters=parameters,
        grid=tuple(grid for name, grid in grids.items() if name not in refusals),
        trust_modes=compare_trust_modes(
            study,
            willing,
            parameters=parameters,
            plan=lambda variant, site: _plan(variant, site, run_folder=run_folder),
        )
        if len(willing) > 1
        else None,
    )


def _plan(study: StudyConfig, site: SiteConfig, *, run_folder: Path | None) -> SitePlan:
    if site.purpose == "open-data" and run_folder is None:
        return plan_site(study, site)
    site_state = simulated_state(site, run_folder=run_folder or site.state)
    with site_state.open_ledger() as ledger:
        return plan_site(study, site, history=ledger.history())
