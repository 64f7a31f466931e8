"""What every hospital has alone, what it gets by joining, and who gains least.

    export MEDFL_REAL_DATA=/path/to/data
    python pipelines/who_gains.py
    python pipelines/who_gains.py --epsilon 8 --seed 1 --out runs/who-gains-quick
    python pipelines/who_gains.py --study STUDY.toml --site A.toml --site B.toml

Without `--study` and `--site` it is the four hospitals of TCGA-LGG. A hospital that keeps its model
owes nobody noise, so what it has alone is what it makes of the public start by ordinary training on
its own patients. What it gets by joining is what it makes of the private federated model in the
same way, with the same cross-validation. Both are scored on its held-out patients, which no
training and no choice has seen. One run for each epsilon and seed; a run that is finished is not
run again, and one that was stopped goes on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medfl.cli.live import LiveProgress
from medfl.config import SiteConfig, StudyConfig, load_site, load_study
from medfl.config.site import Region
from medfl.config.study import Baseline
from medfl.reporting.estimates import (
    Estimate,
    PatientKey,
    by_patient_in,
    estimate_over_runs,
    paired_difference_over_runs,
)
from medfl.runs.files import STUDY
from medfl.runs.records import Variant
from medfl.runs.results import RunResults, read_run
from medfl.study.run import run_study

CONFIGS = Path(__file__).resolve().parents[1] / "site_configs"
LGG_SITES = ("DU", "HT", "CS", "FG")

# What noise does not change is run once a seed.
OF_A_SEED: tuple[Baseline, ...] = ("initial-only", "alone", "non-private", "pooled")
COLUMNS: Mapping[str, Variant] = {
    "start": "initial-only",
    "alone": "alone",
    "federated": "federated",
    "joined": "adapted",
    "no noise": "non-private",
    "pooled": "pooled",
}
ALL = "all sites"

console = Console()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One site (or all of them), region and epsilon.

    Attributes:
        dice: Mean Dice by column of `COLUMNS`, over patients and seeds.
        gain: What it gets by joining less what it has alone.
        over_start: The federated model less the model that the study starts from.
    """

    epsilon: float
    site: str
    region: Region
    dice: Mapping[str, Estimate]
    gain: Estimate
    over_start: Estimate


@app.command()
def main(
    study: Annotated[Path, typer.Option(help="The study.")] = CONFIGS / "lgg" / "study.toml",
    site: Annotated[list[Path] | None, typer.Option(help="A site; several times.")] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(min=1e-3, max=1e6, help="Several times; 8 and 3.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=2**31, help="Several times; 1, 2 and 3.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Sites side by side.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/who-gains"),
) -> None:
    """Run what is missing, and say who gains."""
    files = site or [CONFIGS / "lgg" / f"{name}.toml" for name in LGG_SITES]
    sites = [load_site(file) for file in files]
    epsilons, seeds = epsilon or [8.0, 3.0], seed or [1, 2, 3]
    base = load_study(study)
    cells = [(one, number) for number in seeds for one in epsilons]
    runs: dict[tuple[float, int], RunResults] = {}
    for position, (one, number) in enumerate(cells, start=1):
        folder = out / f"epsilon-{one:g}-seed-{number}"
        console.print(f"run {position} of {len(cells)}: {folder}", highlight=False)
        if not (folder / "summary.json").exists():
            of_seed = () if _of_seed(out, number) else OF_A_SEED
            changed = _cell(base, epsilon=one, seed=number, baselines=(*of_seed, "adapted"))
            _run(changed, sites, out=folder, jobs=jobs)
        runs[one, number] = read_run(folder)
    findings = [
        finding
        for one in epsilons
        for finding in findings_of(
            [runs[one, number] for number in seeds],
            [read_run(_of_seed(out, number)[0]) for number in seeds],
            epsilon=one,
        )
    ]
    _write(findings, out / "who_gains.csv")
    _draw(findings).savefig(out / "who_gains.png", dpi=130)
    for one in epsilons:
        console.print(_table([each for each in findings if each.epsilon == one], seeds=len(seeds)))
    console.print(f"Table and picture: {out}")


def _of_seed(out: Path, seed: int) -> list[Path]:
    """Finished runs of a seed, under whatever epsilon, that hold what noise does not change."""
    folders = sorted(out.glob(f"epsilon-*-seed-{seed}"))
    return [
        folder
        for folder in folders
        if (folder / "summary.json").exists()
        and set(OF_A_SEED) <= set(STUDY.read(folder).evaluation.baselines)
    ]


def findings_of(
    runs: Sequence[RunResults], of_seeds: Sequence[RunResults], *, epsilon: float
) -> list[Finding]:
    """What runs under one epsilon say, a run for each seed.

    Args:
        runs: With the private federation and what sites make of it.
        of_seeds: With what noise does not change, in the same order of seeds.
        epsilon: Of `runs`.
    """
    found = []
    for region in runs[0].study.input.regions:
        for site in (*(site.name for site in runs[0].sites), ALL):

            def scores(variant: Variant, *, at: str = site, of: Region = region) -> list[Dice]:
                noisy = variant in ("federated", "adapted")
                return [dice_of(run, variant, of, site=at) for run in (runs if noisy else of_seeds)]

            found.append(
                Finding(
                    epsilon=epsilon,
                    site=site,
                    region=region,
                    dice={
                        column: estimate_over_runs(scores(variant))
                        for column, variant in COLUMNS.items()
                        if any(scores(variant))
                    },
                    gain=paired_difference_over_runs(scores("adapted"), scores("alone")),
                    over_start=paired_difference_over_runs(
                        scores("federated"), scores("initial-only")
                    ),
                )
            )
    return found


Dice = Mapping[PatientKey, float]


def dice_of(
    run: RunResults, variant: Variant, region: Region, *, site: str, after: int = -1
) -> Dice:
    """By held-out patient of a site or of `ALL`: of a variant's final model, or after a round."""
    at = "" if site == ALL else site
    return by_patient_in(run.scores_of(variant, at=after), region, measure="dice", site=at)


def _cell(
    study: StudyConfig, *, epsilon: float, seed: int, baselines: tuple[Baseline, ...]
) -> StudyConfig:
    """The study under another epsilon and seed, scored at its end only."""
    return study.model_copy(
        update={
            "seed": seed,
            "privacy": study.privacy.model_copy(update={"epsilon": epsilon}),
            "evaluation": study.evaluation.model_copy(
                update={"baselines": baselines, "every": study.training.rounds, "pictures": 0}
            ),
        }
    )


def _run(study: StudyConfig, sites: Sequence[SiteConfig], *, out: Path, jobs: int) -> None:
    with LiveProgress(Console(stderr=True)) as progress:
        run_study(study, sites, out=out, resume=out.exists(), progress=progress, jobs=jobs)


def _table(findings: Sequence[Finding], *, seeds: int) -> Table:
    table = Table(
        title=f"epsilon {findings[0].epsilon:g}: mean Dice on held-out patients, {seeds} seeds",
        show_lines=True,
    )
    columns = list(findings[0].dice)
    for head in ("", "patients", *columns, "joined - alone", "federated - start"):
        table.add_column(head, justify="right" if head else "left")
    worst = _worst(findings)
    for finding in findings:
        named = f"{finding.site}, {finding.region}" + (" (least)" if finding in worst else "")
        table.add_row(
            named,
            str(finding.gain.patients),
            *(f"{finding.dice[column].value:.3f}" for column in columns),
            _signed(finding.gain),
            _signed(finding.over_start),
        )
    return table


def _worst(findings: Iterable[Finding]) -> list[Finding]:
    """The site of each region that gains least."""
    by_region: dict[Region, list[Finding]] = {}
    for finding in findings:
        if finding.site != ALL:
            by_region.setdefault(finding.region, []).append(finding)
    return [min(group, key=lambda each: each.gain.value) for group in by_region.values()]


def _signed(value: Estimate) -> str:
    return f"{value.value:+.3f}\n{value.low:+.3f} to {value.high:+.3f}"


def _write(findings: Sequence[Finding], path: Path) -> None:
    columns = list(findings[0].dice)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{name}{end}" for name in ("gain", "over_start") for end in ("", "_low", "_high")]
        writer.writerow(["epsilon", "site", "region", "patients", *columns, *ends])
        for each in findings:
            numbers = [each.dice[column].value for column in columns]
            for value in (each.gain, each.over_start):
                numbers += [value.value, value.low, value.high]
            writer.writerow(
                [
                    f"{each.epsilon:g}",
                    each.site,
                    each.region,
                    each.gain.patients,
                    *(f"{number:.4f}" for number in numbers),
                ]
            )


def _draw(findings: Sequence[Finding]) -> Figure:
    """One row a site and region: the gain with its interval, a colour for each epsilon."""
    rows = list(dict.fromkeys((each.site, each.region) for each in findings))
    epsilons = list(dict.fromkeys(each.epsilon for each in findings))
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="grey", linewidth=1)
    for shift, epsilon in enumerate(epsilons):
        group = [each for each in findings if each.epsilon == epsilon]
        places = [rows.index((each.site, each.region)) + 0.18 * shift for each in group]
        values = [each.gain.value for each in group]
        reach = [
            [each.gain.value - each.gain.low for each in group],
            [each.gain.high - each.gain.value for each in group],
        ]
        axes.errorbar(values, places, xerr=reach, fmt="o", label=f"epsilon {epsilon:g}", capsize=3)
    axes.set_yticks(range(len(rows)), [f"{site}, {region}" for site, region in rows])
    axes.invert_yaxis()
    axes.set_xlabel("gain in Dice by joining, over staying alone without noise")
    axes.legend()
    return figure


if __name__ == "__main__":
    app()
