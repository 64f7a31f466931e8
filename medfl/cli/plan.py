"""`medfl plan`: what a study costs each site and what it may bring, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from medfl.config import SiteConfig, StudyConfig, load_site, load_study
from medfl.errors import ConfigError, PolicyRefused
from medfl.json_text import to_json

if TYPE_CHECKING:
    from medfl.privacy.accounting.planner import SitePlan

# The libraries behind a plan take seconds to import: they are imported after the files are read.

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]
SiteFiles = Annotated[list[Path], typer.Argument(metavar="SITE.toml...", help="The site files.")]

NOISE_COLUMNS = {
    "site": "site",
    "patients\nn": "declared_patients",
    "q": "sampling_prob",
    "L\n= q n": "divisor",
    "rounds": "rounds",
    "local\nsteps": "local_steps",
    "sigma": "noise_multiplier",
    "noise\n/ C": "noise_per_coordinate",
    "noise /\nsignal": "noise_to_signal",
}
EPSILON_COLUMNS = {
    "site": "site",
    "delta": "delta",
    "epsilon\nbefore": "epsilon_before",
    "epsilon\nafter": "epsilon",
    "budget": "epsilon_budget",
    "steps of\nthe study": "steps",
    "steps until the\nbudget is spent": "steps_until_spent",
}
VERDICTS = {
    "usable": "usable",
    "weak": "weak, pretraining matters",
    "none": "expect no benefit; use secure aggregation or pretraining only",
}
RULE_OF_THUMB = (
    "Noise / C is that of one step, per coordinate. Noise / signal is the norm of the noise of all "
    "steps over the largest norm that their signal can have: noise / C x sqrt({parameters:,} "
    "trainable parameters / {steps:,} steps). The verdicts are a rule of thumb from two measured "
    "studies of tumour segmentation: usable below {usable:g}, no benefit from {none:g}."
)
_PLOTTED_ROUNDS = 30
_NAME_WIDTH = 14  # of a site's name in a table, before it is folded


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The plans of all sites, and who would refuse.

    Attributes:
        study: The study.
        plans: One a site, in the order of the files.
        refusals: Why a site would refuse, by site.
        parameters: Trainable parameters of the network.
    """

    study: StudyConfig
    plans: Sequence[SitePlan]
    refusals: Mapping[str, PolicyRefused]
    parameters: int

    @property
    def accepting(self) -> list[SitePlan]:
        """Plans of the sites that would take part."""
        return [plan for plan in self.plans if plan.site not in self.refusals]


def plan(
    study: StudyFile,
    sites: SiteFiles,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="Also draw epsilon against rounds."),
    ] = None,
) -> None:
    """Show what a study would cost each site, and whether its noise leaves anything to learn from.

    The noise of each site follows from the study's target epsilon, its rounds and steps, the site's
    delta, and what the site's ledger has left. A site whose policy would refuse the study is named.
    No image is read.
    """
    proposal, files = load_study(study), [load_site(path) for path in sites]
    _expect_distinct(files)
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"Expected --picture with a name that ends in .png, found {picture}.")
    planned = _plan(proposal, files)
    if picture is not None:
        _draw(planned, picture)
    if as_json:
        typer.echo(to_json(_report(planned), indent=2))
    else:
        _print(planned)
    for refusal in planned.refusals.values():
        raise refusal


def _expect_distinct(sites: Sequence[SiteConfig]) -> None:
    names = [site.name for site in sites]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"Expected one file a site, found several with the names {doubled}.")


def _plan(study: StudyConfig, sites: Sequence[SiteConfig]) -> StudyPlan:
    from medfl.protocol.study_model import model_spec
    from medfl.segmentation.networks import trainable_state
    from medfl.study.run import plan_study

    plans = plan_study(study, sites)
    weights = trainable_state(model_spec(study).build(seed=study.seed))
    refusals = {
        site.name: refusal
        for plan, site in zip(plans, sites, strict=True)
        if (refusal := _refusal(plan, site)) is not None
    }
    parameters = sum(weight.numel() for weight in weights.values())
    return StudyPlan(study=study, plans=plans, refusals=refusals, parameters=parameters)


def _refusal(plan: SitePlan, site: SiteConfig) -> PolicyRefused | None:
    from medfl.privacy.policy import check_proposal

    try:
        check_proposal(plan.mechanism, rounds=plan.rounds, site=site)
    except PolicyRefused as error:
        return PolicyRefused(f"Site {site.name}: {error}", code=error.code)
    return None


def _report(planned: StudyPlan) -> dict[str, Any]:
    """Everything that is printed."""
    from medfl.privacy.accounting.planner import averaged_noise

    federation = None
    if planned.accepting:
        federation = {
            "sites": [plan.site for plan in planned.accepting],
            "declared_patients": sum(p.mechanism.declared_patients for p in planned.accepting),
            **_noise(planned, averaged_noise(planned.accepting)),
        }
    return {
        "study": planned.study.id,
        "target_epsilon": planned.study.privacy.epsilon,
        "parameters": planned.parameters,
        "sites": [_site_row(planned, plan) for plan in planned.plans],
        "federation": federation,
        "rule_of_thumb": _rule_of_thumb(planned),
    }


def _site_row(planned: StudyPlan, plan: SitePlan) -> dict[str, Any]:
    mechanism, refusal = plan.mechanism, planned.refusals.get(plan.site)
    return {
        "site": plan.site,
        "declared_patients": mechanism.declared_patients,
        "weight": plan.weight,
        "sampling_prob": mechanism.sampling_prob,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip_norm": mechanism.clip_norm,
        "divisor": mechanism.divisor,
        "rounds": plan.rounds,
        "local_steps": mechanism.local_steps,
        "steps": plan.total_steps,
        "delta": plan.delta,
        "epsilon_before": plan.epsilon_before,
        "epsilon": plan.epsilon,
        "epsilon_budget": plan.epsilon_budget,
        "steps_until_spent": plan.steps_until_spent(),
        "refused": "" if refusal is None else refusal.code,
        **_noise(planned, plan.noise_per_coordinate),
    }


def _noise(planned: StudyPlan, noise_per_coordinate: float) -> dict[str, Any]:
    from medfl.privacy.accounting.planner import expected_benefit, noise_to_signal

    ratio = noise_to_signal(
        noise_per_coordinate, steps=planned.study.total_steps, parameters=planned.parameters
    )
    return {
        "noise_per_coordinate": noise_per_coordinate,
        "noise_to_signal": ratio,
        "benefit": expected_benefit(ratio),
    }


def _print(planned: StudyPlan) -> None:
    report, console = _report(planned), Console()
    for title, columns in (
        (f"Plan of {planned.study.id}: noise", NOISE_COLUMNS),
        ("Privacy loss", EPSILON_COLUMNS),
    ):
        table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for heading in columns:
            if heading == "site":
                table.add_column(heading, min_width=_NAME_WIDTH, overflow="fold")
            else:
                table.add_column(heading, justify="right", no_wrap=True)
        for row in report["sites"]:
            table.add_row(*[_shown(key, row[key]) for key in columns.values()])
        console.print(table)
    for line in (*_sentences(planned, report), report["rule_of_thumb"]):
        console.print(line, highlight=False, markup=False)


def _sentences(planned: StudyPlan, report: Mapping[str, Any]) -> list[str]:
    from medfl.reporting import wording

    lines = []
    target = planned.study.privacy.epsilon
    for row in report["sites"]:
        refusal = planned.refusals.get(row["site"])
        if refusal is None:
            patients = wording.counted(row["declared_patients"], "patient")
            epsilon = min(target, row["epsilon_budget"])
            verdict = VERDICTS[row["benefit"]]
            lines.append(f"{row['site']} alone, {patients} at epsilon {epsilon:g}: {verdict}.")
        else:
            lines.append(f"{row['site']} would answer {refusal.code}.")
    together = report["federation"]
    if together is not None:
        lines.append(
            f"Together ({len(together['sites'])} of {len(planned.plans)} sites), "
            f"{together['declared_patients']} patients at epsilon {target:g}: "
            f"{VERDICTS[together['benefit']]}. The averaged update has noise / C = "
            f"{wording.significant(together['noise_per_coordinate'])} and noise / signal = "
            f"{wording.significant(together['noise_to_signal'])}."
        )
    return lines


def _rule_of_thumb(planned: StudyPlan) -> str:
    from medfl.privacy.accounting.planner import NO_BENEFIT_FROM, USABLE_BELOW

    return RULE_OF_THUMB.format(
        usable=USABLE_BELOW,
        none=NO_BENEFIT_FROM,
        parameters=planned.parameters,
        steps=planned.study.total_steps,
    )


def _draw(planned: StudyPlan, path: Path) -> None:
    from medfl.reporting.plan_figure import PlannedLoss, draw_plan

    last = planned.study.training.rounds
    stride = math.ceil(last / _PLOTTED_ROUNDS)
    rounds = sorted({0, 1, *range(stride, last, stride), last})
    sites = [
        PlannedLoss(
            site=plan.site,
            patients=plan.mechanism.declared_patients,
            losses={
                number: plan.epsilon_after(number * plan.mechanism.local_steps) for number in rounds
            },
            budget=plan.epsilon_budget,
        )
        for plan in planned.plans
    ]
    draw_plan(sites, study=planned.study.id, target=planned.study.privacy.epsilon, path=path)


def _shown(key: str, value: object) -> str:
    from medfl.privacy.accounting.planner import MOST_STEPS
    from medfl.reporting import wording

    if key == "steps_until_spent" and value == MOST_STEPS:
        return f"over {MOST_STEPS}"
    if not isinstance(value, float):
        return str(value)
    if key in ("sampling_prob", "delta", "epsilon_budget"):
        return f"{value:g}"
    return wording.at_most(value) if key.startswith("epsilon") else wording.significant(value)
