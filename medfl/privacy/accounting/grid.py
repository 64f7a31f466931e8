"""What a grid of runs costs a site: each run is a study of its own, and all of them add up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medfl.errors import BudgetExceeded
from medfl.privacy.accounting.accountant import lifetime_epsilon, smallest_noise
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.accounting.planner import SitePlan
from medfl.privacy.ledger.ledger import TOLERANCE


@dataclass(frozen=True, kw_only=True)
class GridPlan:
    """Several runs of one study at one site, each with the noise of the plan.

    Attributes:
        site: Name of the site.
        runs: Runs from here on.
        epsilon: Lifetime epsilon after all of them; infinite without noise.
        epsilon_budget: The site's lifetime budget.
        affordable: How many of them the budget pays for.
        epsilon_of_each: The largest epsilon of a single run with which the budget pays for all of
            them; 0 if there is none, and never above what the plan gives one run.
    """

    site: str
    runs: int
    epsilon: float
    epsilon_budget: float
    affordable: int
    epsilon_of_each: float

    @property
    def fits(self) -> bool:
        """Whether the budget pays for all of them."""
        return self.affordable == self.runs

    def require_fit(self) -> None:
        """Refuse a grid that the site's ledger would stop midway.

        Raises:
            BudgetExceeded: If the budget pays for fewer runs.
        """
        if self.fits:
            return
        way_out = (
            f"all of them with epsilon <= {_down(self.epsilon_of_each)} each"
            if self.epsilon_of_each
            else "none of them as a grid of this size"
        )
        raise BudgetExceeded(
            f"Site {self.site}: expected {self.runs} runs within the lifetime budget of "
            f"{self.epsilon_budget:g}, found epsilon {self.epsilon:.2f}. It pays for "
            f"{self.affordable}, or for {way_out}."
        )


def plan_grid(plan: SitePlan, *, runs: int) -> GridPlan:
    """Charge so many runs of a plan, one after the other.

    Every run is chosen after the ones before it were seen, so they add up as studies do, see
    `medfl.privacy.accounting.accountant.lifetime_epsilon`.

    Args:
        plan: Of one run.
        runs: At least 1.

    Raises:
        ValueError: If `runs` is below 1.
    """
    if runs < 1:
        raise ValueError(f"Expected runs >= 1, found {runs}.")
    limit = plan.epsilon_budget + TOLERANCE
    affordable, beyond = 0, runs + 1
    while beyond - affordable > 1:
        middle = (affordable + beyond) // 2
        if _after(plan, runs=middle) <= limit:
            affordable = middle
        else:
            beyond = middle
    return GridPlan(
        site=plan.site,
        runs=runs,
        epsilon=_after(plan, runs=runs),
        epsilon_budget=plan.epsilon_budget,
        affordable=affordable,
        epsilon_of_each=_of_each(plan, runs=runs, affordable=affordable),
    )


def _after(plan: SitePlan, *, runs: int, noise_multiplier: float | None = None) -> float:
    """Lifetime epsilon after the runs, with the plan's noise or another."""
    mechanism = plan.mechanism.as_counted
    if noise_multiplier is not None:
        mechanism = replace(mechanism, noise_multiplier=noise_multiplier)
    study = [Charge(mechanism=mechanism, steps=plan.total_steps)]
    return lifetime_epsilon(
        [*plan.history, *[study] * runs], delta=plan.delta, budget=plan.epsilon_budget
    )


def _of_each(plan: SitePlan, *, runs: int, affordable: int) -> float:
    alone = replace(plan, history=())
    if affordable == runs:
        return _after(alone, runs=1)
    try:
        sigma = smallest_noise(
            lambda noise: _after(plan, runs=runs, noise_multiplier=noise) - plan.epsilon_budget
        )
    except BudgetExceeded:
        return 0.0
    return _after(alone, runs=1, noise_multiplier=sigma)


def _down(value: float) -> str:
    """With two decimals, rounded down: what is recommended has to fit."""
    return f"{int(value * 100) / 100:.2f}"
