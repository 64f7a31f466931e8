"""What a secure sum brings: a study with noise at each hospital, in a secure sum, and hybrid.

    export MEDFL_REAL_DATA=/path/to/data
    python pipelines/trust_modes.py --out runs/trust-modes
    python pipelines/trust_modes.py --study STUDY.toml --site A.toml --site B.toml

Without `--study` and `--site` it is the four hospitals of TCGA-LGG. `hybrid` is a secure sum in
which every hospital insists on a share of the noise that keeps its patients at twice the target
epsilon if all others side with the server. Steps are equal in all modes. Each mode is also set
beside the model that the study starts from, patient by patient. The noise is measured on the first
update: the same draws with and without it, one taken from the other. A run that is finished is not
run again, and one that was stopped goes on.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from medfl.cli.live import LiveProgress
from medfl.config import SiteConfig, StudyConfig, load_site, load_study
from medfl.config.site import Region
from medfl.config.study_grid import Mode
from medfl.privacy.accounting.planner import averaged_noise
from medfl.reporting.estimates import (
    Estimate,
    PatientKey,
    by_patient_in,
    estimate_over_runs,
    paired_difference_over_runs,
)
from medfl.runs.results import RunResults, read_run
from medfl.study.cells import sites_in, study_in
from medfl.study.plan import plan_study
from medfl.study.run import run_study

CONFIGS = Path(__file__).resolve().parents[1] / "site_configs"
LGG_SITES = ("DU", "HT", "CS", "FG")
MODES: tuple[Mode, ...] = get_args(Mode)
ALL = "all sites"
COLUMNS = (
    *("mode", "epsilon", "site", "region", "dice", "low", "high"),
    *("over_start", "over_start_low", "over_start_high", "noise", "planned_noise"),
)

console = Console()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mode, epsilon and place.

    Attributes:
        site: A site, or all of them.
        dice: Of the federated model on held-out patients, over patients and seeds.
        over_start: The same less that of the model that the study starts from.
        noise: Measured on the first averaged update, over C.
        planned_noise: What the plan says it is.
    """

    mode: Mode
    epsilon: float
    site: str
    region: Region
    dice: Estimate
    over_start: Estimate
    noise: float
    planned_noise: float


@app.command()
def main(
    study: Annotated[Path, typer.Option(help="The study.")] = CONFIGS / "lgg" / "study.toml",
    site: Annotated[list[Path] | None, typer.Option(help="A site; several times.")] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(min=1e-3, max=1e6, help="Several times; 8, 3 and 1.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=2**31, help="Several times; 1, 2 and 3.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Sites side by side.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/trust-modes"),
) -> None:
    """Run what is missing, and set the modes side by side."""
    files = site or [CONFIGS / "lgg" / f"{name}.toml" for name in LGG_SITES]
    base, sites = load_study(study), [load_site(file) for file in files]
    epsilons, seeds = epsilon or [8.0, 3.0, 1.0], seed or [1, 2, 3]
    cells = [(mode, one, number) for number in seeds for one in epsilons for mode in MODES]
    runs: dict[tuple[Mode, float, int], RunResults] = {}
    for position, (mode, one, number) in enumerate(cells, start=1):
        folder = out / f"{mode}-epsilon-{one:g}-seed-{number}"
        console.print(f"run {position} of {len(cells)}: {folder}", highlight=False)
        cell = study_in(base, trust=mode, epsilon=one, seed=number)
        of_mode = sites_in(sites, cell, trust=mode)
        _run(cell, of_mode, out=folder, jobs=jobs)
        runs[mode, one, number] = read_run(folder)
    findings: list[Finding] = []
    for mode in MODES:
        for one in epsilons:
            cell = study_in(base, trust=mode, epsilon=one, seed=seeds[0])
            measured, planned = measured_noise(
                cell,
                sites_in(sites, cell, trust=mode),
                out=out / f"noise-{mode}-epsilon-{one:g}",
                jobs=jobs,
            )
            of_seeds = [runs[mode, one, number] for number in seeds]
            findings += _findings(of_seeds, mode=mode, noise=measured, planned_noise=planned)
    _write(findings, out / "trust_modes.csv")
    _draw(findings).savefig(out / "trust_modes.png", dpi=130)
    for one in epsilons:
        console.print(_table([each for each in findings if each.epsilon == one], seeds=len(seeds)))
    console.print(f"Table and picture: {out}", highlight=False)


def measured_noise(
    study: StudyConfig, sites: Sequence[SiteConfig], *, out: Path, jobs: int
) -> tuple[float, float]:
    """Noise on the first averaged update per coordinate, over C: measured, and planned.

    Args:
        study: The study; its first round is run alone, with a seeded source of noise and draws.
        sites: The sites.
        out: Folder of the two runs.
        jobs: Sites side by side.
    """
    values = study.model_dump(mode="json") | {"synthetic": None}
    plan = plan_study(study, sites)
    sigma = max(each.mechanism.noise_multiplier for each in plan.sites)
    values["privacy"] |= {"noise": "seeded"}
    values["training"] |= {"rounds": 1}
    values["aggregation"] |= {"strategy": "fedavg", "ema_decay": 0.0, "server_learning_rate": 1.0}
    values["evaluation"] |= {"every": 1}
    # One step with the noise of all: its epsilon is whatever it is.
    values["privacy"]["epsilon"] = 1e6
    seeded = StudyConfig.model_validate(values, strict=False)
    share = sigma / math.sqrt(study.honest_sites)
    noisy = [
        site.model_copy(
            update={
                "privacy": site.privacy.model_copy(
                    update={
                        "min_noise_multiplier": sigma,
                        "min_share_noise_multiplier": share if study.honest_sites > 1 else 0.0,
                        "epsilon": 1e6,
                    }
                )
            }
        )
        for site in sites
    ]
    with_baseline = seeded.model_copy(
        update={"evaluation": seeded.evaluation.model_copy(update={"baselines": ("non-private",)})}
    )
    _run(with_baseline, noisy, out=out, jobs=jobs)
    private = load_file(out / "checkpoints" / "final.safetensors")
    plain = load_file(out / "baselines" / "non-private" / "checkpoints" / "final.safetensors")
    rate = study.learning_rate(1) * study.clip_norm(1)
    moved = [(private[name] - plain[name]).flatten() for name in private]
    changed = torch.cat([part for part in moved if bool(part.any())])
    return float(changed.double().std()) / rate, averaged_noise(plan.sites)


def _findings(
    runs: Sequence[RunResults], *, mode: Mode, noise: float, planned_noise: float
) -> list[Finding]:
    names = [site.name for site in runs[0].sites]
    found = []
    for region in runs[0].study.input.regions:
        for at in (*names, ALL):
            scores = [_dice_of(run, region, site=at) for run in runs]
            starts = [_dice_of(run, region, site=at, after=0) for run in runs]
            found.append(
                Finding(
                    mode=mode,
                    epsilon=runs[0].study.privacy.epsilon,
                    site=at,
                    region=region,
                    dice=estimate_over_runs(scores),
                    over_start=paired_difference_over_runs(scores, starts),
                    noise=noise,
                    planned_noise=planned_noise,
                )
            )
    return found


def _dice_of(
    run: RunResults, region: Region, *, site: str, after: int = -1
) -> Mapping[PatientKey, float]:
    """By held-out patient of a site or of `ALL`: of the final federated model, or after a round."""
    at = "" if site == ALL else site
    return by_patient_in(run.scores_of("federated", at=after), region, measure="dice", site=at)


def _run(study: StudyConfig, sites: Sequence[SiteConfig], *, out: Path, jobs: int) -> None:
    if (out / "summary.json").exists():
        return
    with LiveProgress(Console(stderr=True)) as progress:
        run_study(study, sites, out=out, resume=out.exists(), progress=progress, jobs=jobs)


def _table(findings: Sequence[Finding], *, seeds: int) -> Table:
    table = Table(
        title=f"epsilon {findings[0].epsilon:g}: mean Dice of the federated model, {seeds} seeds"
    )
    table.add_column("")
    for mode in MODES:
        table.add_column(mode, justify="right")
    by_place: dict[tuple[str, Region], dict[Mode, Finding]] = {}
    for each in findings:
        by_place.setdefault((each.site, each.region), {})[each.mode] = each
    for (place, region), modes in by_place.items():
        table.add_row(f"{place}, {region}", *(_interval(modes[mode].dice) for mode in MODES))
        table.add_row("  over its start", *(_difference(modes[mode].over_start) for mode in MODES))
    some: Mapping[Mode, Finding] = next(iter(by_place.values()))
    for name, key in (("noise / C, planned", "planned_noise"), ("noise / C, measured", "noise")):
        table.add_row(name, *(f"{getattr(some[mode], key):.4f}" for mode in MODES))
    return table


def _interval(value: Estimate) -> str:
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def _difference(value: Estimate) -> str:
    return f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def _write(findings: Sequence[Finding], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for each in findings:
            numbers = [
                number
                for estimate in (each.dice, each.over_start)
                for number in (estimate.value, estimate.low, estimate.high)
            ]
            writer.writerow(
                [each.mode, f"{each.epsilon:g}", each.site, each.region]
                + [f"{number:.5f}" for number in (*numbers, each.noise, each.planned_noise)]
            )


def _draw(findings: Sequence[Finding]) -> Figure:
    """Dice against epsilon, a panel for each region and a line for each mode, over all sites."""
    regions = list(dict.fromkeys(each.region for each in findings))
    figure = Figure(figsize=(4.2 * len(regions), 3.6), layout="constrained")
    panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for panel, region in zip(panels, regions, strict=True):
        for mode in MODES:
            row = sorted(
                (
                    each
                    for each in findings
                    if (each.mode, each.region, each.site) == (mode, region, ALL)
                ),
                key=lambda each: each.epsilon,
            )
            values = [each.dice.value for each in row]
            reach = [
                [each.dice.value - each.dice.low for each in row],
                [each.dice.high - each.dice.value for each in row],
            ]
            panel.errorbar(
                # Apart from each other, so that no interval hides another one.
                [each.epsilon * (1 + 0.04 * MODES.index(mode)) for each in row],
                values,
                yerr=reach,
                marker="o",
                capsize=3,
                label=mode,
            )
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
        epsilons = sorted({each.epsilon for each in findings})
        panel.set_xticks(epsilons, [f"{one:g}" for one in epsilons])
        panel.set_title(region)
        panel.set_xlabel("epsilon")
    panels[0].set_ylabel("Dice of the federated model")
    panels[0].legend()
    return figure


if __name__ == "__main__":
    app()
