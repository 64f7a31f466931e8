"""`medfl plan`: what a study costs each site and what it may bring, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from medfl.config import load_site, load_study
from medfl.errors import ConfigError, PrivacyError
from medfl.json_text import to_json

if TYPE_CHECKING:
    from medfl.privacy.accounting.grid import GridPlan
    from medfl.study.plan import StudyPlan
    from medfl.study.trust_modes import TrustModes

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
    "none": "expect no benefit; more patients, more sites, or pretraining only",
}
RULE_OF_THUMB = (
    "Noise / C is that of one step, per coordinate. Noise / signal is the norm of the noise of all "
    "steps over the largest norm that their signal can have: noise / C x sqrt({parameters:,} "
    "trained parameters / {steps:,} steps{scheduled}). The verdicts are a rule of thumb from two "
    "measured studies of tumour segmentation: usable below {usable:g}, no benefit from {none:g}."
)
_PLOTTED_ROUNDS = 30
_NAME_WIDTH = 14  # of a site's name in a table, before it is folded


def plan(
    study: StudyFile,
    sites: SiteFiles,
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            min=1,
            max=1000,
            help="Number of runs from which the study's settings are chosen.",
        ),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE.png",
            help="Also draw epsilon against rounds and against colluding sites.",
        ),
    ] = None,
) -> None:
    """Show what a study would cost each site, and whether its noise leaves anything to learn from.

    Each site's noise follows from the study's target epsilon, its rounds and steps, the site's
    delta, and what is left in the site's ledger. A site whose policy or budget would refuse the
    study is named, and left out of what the others can expect. No image is read.

    Several sites can hide their updates in a sum, so that each has to add only a part of the noise
    (trust = "secure"): both modes are shown side by side, with what they promise if sites collude
    with the server.

    Choosing among several runs costs all of them: --runs charges a whole grid of settings, and says
    what each run may cost so that the budgets suffice.
    """
    proposal, files = load_study(study), [load_site(path) for path in sites]
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"Expected --picture to name a file that ends in .png, found {picture}.")
    from medfl.study.plan import plan_study

    planned = plan_study(proposal, files, runs=runs)
    if picture is not None and planned.sites:
        _draw(planned, picture)
    if as_json:
        typer.echo(to_json(_report(planned), indent=2))
    else:
        _print(planned)
    if planned.refusals:
        raise PrivacyError("\n".join(str(refusal) for refusal in planned.refusals.values()))


def _report(planned: StudyPlan) -> dict[str, Any]:
    """Everything that is printed."""
    return planned.to_dict() | {"rule_of_thumb": _rule_of_thumb(planned)}


def _print(planned: StudyPlan) -> None:
    report, console = _report(planned), Console()
    for name, code in report["refused"].items():
        console.print(f"{name} would answer {code}.", highlight=False, markup=False)
    if not planned.sites:
        return
    for title, columns in (
        (f"Plan of {planned.study.id}: noise", NOISE_COLUMNS),
        ("Privacy loss", EPSILON_COLUMNS),
    ):
        table = _table(title)
        for heading in columns:
            if heading == "site":
                table.add_column(heading, min_width=_NAME_WIDTH, overflow="fold")
            else:
                table.add_column(heading, justify="right", no_wrap=True)
        for row in report["sites"]:
            table.add_row(*[_shown(key, row[key]) for key in columns.values()])
        console.print(table)
    if planned.trust_modes is not None and not planned.trust_modes.obstacle:
        console.print(_trust_modes(planned.trust_modes))
    if planned.grid:
        console.print(_grid(planned.grid))
    for line in (*_sentences(planned, report), report["rule_of_thumb"]):
        console.print(line, highlight=False, markup=False)


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)


def _trust_modes(found: TrustModes) -> Table:
    from medfl.reporting import wording

    table = _table("Trust modes: epsilon against the server with other sites")
    table.add_column("trust")
    counts = [f"with\n{count}" if count else "server\nalone" for count in found.counts]
    for heading in ("noise\n/ C", "noise /\nsignal", "sites\nto stay", *counts):
        table.add_column(heading, justify="right", no_wrap=True)
    for mode in found.modes:
        table.add_row(
            mode.trust if mode.of_study else f"({mode.trust})",
            wording.significant(mode.noise_per_coordinate),
            wording.significant(mode.noise_to_signal),
            str(mode.threshold),
            *(wording.at_most(epsilon) for epsilon in mode.epsilons.values()),
        )
    return table


def _grid(grid: Sequence[GridPlan]) -> Table:
    from medfl.reporting import wording

    table = _table(f"{grid[0].runs} runs, one after the other")
    table.add_column("site", min_width=_NAME_WIDTH, overflow="fold")
    for heading in ("epsilon\nof each", "epsilon after\nall of them", "budget"):
        table.add_column(heading, justify="right", no_wrap=True)
    for of_site in grid:
        table.add_row(
            of_site.site,
            wording.at_most(of_site.epsilon_of_each),
            wording.at_most(of_site.epsilon),
            f"{of_site.epsilon_budget:g}",
        )
    return table


def _sentences(planned: StudyPlan, report: Mapping[str, Any]) -> list[str]:
    from medfl.reporting import wording

    lines = []
    target = planned.study.privacy.epsilon
    for row in report["sites"]:
        patients = wording.counted(row["declared_patients"], "patient")
        epsilon = min(target, row["epsilon_budget"])
        verdict = VERDICTS[row["benefit"]]
        lines.append(f"{row['site']} alone, {patients} at epsilon {epsilon:g}: {verdict}.")
    together, asked = report["federation"], len(planned.sites) + len(planned.refusals)
    # A stricter site keeps to its own budget, whatever the study aims at.
    most = min(target, max((plan.epsilon_budget for plan in planned.sites), default=target))
    if together is not None:
        lines.append(
            f"Together ({len(together['sites'])} of {asked} sites), "
            f"{together['declared_patients']} patients at epsilon {most:g}: "
            f"{VERDICTS[together['benefit']]}. The averaged update has noise / C = "
            f"{wording.significant(together['noise_per_coordinate'])} and noise / signal = "
            f"{wording.significant(together['noise_to_signal'])}."
        )
    modes = planned.trust_modes
    if modes is not None:
        lines.append(modes.obstacle or modes.advice)
    if planned.collections:
        lines.append(
            f"The starting model has seen public patients, of {', '.join(planned.collections)}; "
            "the guarantee does not cover them. A site that has one of them will refuse the study."
        )
    return lines


def _rule_of_thumb(planned: StudyPlan) -> str:
    from medfl.privacy.accounting.planner import NO_BENEFIT_FROM, USABLE_BELOW, equal_steps

    steps = equal_steps(planned.study)
    changing = steps != planned.study.total_steps
    return RULE_OF_THUMB.format(
        usable=USABLE_BELOW,
        none=NO_BENEFIT_FROM,
        parameters=planned.parameters,
        steps=round(steps),
        scheduled=" of one size, like the study's under its schedules" if changing else "",
    )


def _draw(planned: StudyPlan, path: Path) -> None:
    from medfl.reporting.plan_figure import CollusionCurve, PlannedLoss, draw_plan

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
        for plan in planned.sites
    ]
    modes = planned.trust_modes
    draw_plan(
        sites,
        study=planned.study.id,
        target=planned.study.privacy.epsilon,
        path=path,
        collusion=[
            CollusionCurve(trust=mode.trust, of_study=mode.of_study, epsilons=mode.epsilons)
            for mode in (modes.modes if modes is not None else ())
        ],
    )


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
