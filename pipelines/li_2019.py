"""What the first private federation of brain-tumour segmentation gets, and its true epsilon.

    python pipelines/li_2019.py
    python pipelines/li_2019.py --brats2018 /path/to/MICCAI_BraTS_2018_Data_Training
    python pipelines/li_2019.py --study STUDY.toml --site A.toml --site B.toml

Li et al. 2019 (arXiv 1910.00962) let 13 institutions of BraTS 2018 share a part of each update,
chosen and noised by the sparse vector technique (`sparse_vector.py`). Here are its settings again:
all of an update, the largest part without noise, and that technique under several epsilons, with
Adam's moments kept at the sites or begun anew in every round. Each stands beside its true epsilon,
of all rounds together, and beside medfl's own private federation of the same patients at epsilon 8.
BraTS 2018 is cut by the institution in each patient's name, as in the paper; without it there are
13 synthetic hospitals. All start from the study's public model. A finished cell is not run again.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from li_2019_cells import SETTINGS, Scores, Training, cell, run_folder, shown
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medfl.cli.live import LiveProgress
from medfl.config import SiteConfig, StudyConfig, load_site, load_study
from medfl.config.open_data_site import open_data_site
from medfl.config.site import Region
from medfl.durable import write_atomically
from medfl.errors import ConfigError
from medfl.phantom.hospitals import write_hospitals
from medfl.reporting.estimates import Estimate, by_patient_in, estimate_over_runs
from medfl.runs.files import SUMMARY
from medfl.runs.records import Variant
from medfl.runs.results import read_run
from medfl.study.cells import study_in
from medfl.study.run import run_study

CONFIGS = Path(__file__).resolve().parents[1] / "site_configs"
INSTITUTIONS = 13
PATIENTS = 16
"""Of a synthetic hospital; four of them are held out. The 13 of BraTS 2018 have 22 on average."""

console = Console()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One setting and region: mean Dice on held-out patients, over patients and seeds."""

    words: str
    epsilon: float
    region: Region
    dice: Estimate


@app.command()
def main(
    study: Annotated[Path, typer.Option(help="The study.")] = CONFIGS / "demo" / "study.toml",
    site: Annotated[list[Path] | None, typer.Option(help="A site; several times.")] = None,
    brats2018: Annotated[
        Path | None, typer.Option(help="Training folder of BraTS 2018, with HGG and LGG.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=2**31, help="Several times; 1 and 2.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Rounds.")] = 20,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Of a site in a round.")] = 4,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Of medfl's own federation.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/li-2019"),
) -> None:
    """Run what is missing, and set each setting beside its true epsilon."""
    base = load_study(study)
    files = site or (brats_sites(brats2018, out=out) if brats2018 else phantom_sites(out))
    sites = [load_site(file) for file in files]
    training, seeds = Training(rounds=rounds, steps=steps), seed or [1, 2]
    for number in seeds:
        own_federation(base, sites, seed=number, out=out, jobs=jobs)
    findings: list[Finding] = []
    for setting in SETTINGS:
        found = [
            cell(setting, base, sites, training=training, seed=number, out=out) for number in seeds
        ]
        findings += _findings(setting.words, setting.epsilon, found, regions=base.input.regions)
    own: tuple[tuple[str, float, Variant], ...] = (
        ("public start", 0.0, "initial-only"),
        ("medfl, patient-level", base.privacy.epsilon, "federated"),
        ("medfl without noise", math.inf, "non-private"),
    )
    for words, epsilon, variant in own:
        found = _own_scores(base, variant, seeds=seeds, out=out)
        findings += _findings(words, epsilon, found, regions=base.input.regions)
    _write(findings, out / "li_2019.csv")
    _draw(findings).savefig(out / "li_2019.png", dpi=130)
    console.print(_table(findings, seeds=len(seeds)))
    console.print(f"Table and picture: {out}", highlight=False)


def phantom_sites(out: Path) -> list[Path]:
    """Thirteen synthetic hospitals, written once."""
    folder = out / "hospitals"
    if not folder.exists():
        console.print(f"{INSTITUTIONS} synthetic hospitals: {folder}", highlight=False)
        counts = (PATIENTS,) * INSTITUTIONS
        write_hospitals(folder, patients=counts, shape=(64, 64, 48), spacing=(2.8, 2.8, 3.4))
    return sorted(folder.glob("*.toml"))


def brats_sites(root: Path, *, out: Path) -> list[Path]:
    """A site for each institution that is named in the patients of BraTS 2018."""
    folder = out / "institutions"
    folder.mkdir(parents=True, exist_ok=True)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for case in sorted(root.glob("[HL]GG/Brats18_*")):
        names[case.name.split("_")[1]].append(case.name)
    if not names:
        raise ConfigError(f"{root}: expected the folders HGG and LGG of BraTS 2018, found none.")
    files = []
    for institution, cases in sorted(names.items()):
        listed, file = folder / f"{institution}.txt", folder / f"{institution}.toml"
        write_atomically(listed, "".join(f"{case}\n" for case in cases).encode())
        text = open_data_site(
            institution,
            about=f"BraTS 2018, patients of {institution}: public research data",
            root=str(root.resolve()),
            layout="brats2018",
            label_scheme="brats",
            modalities=("t1n", "t1c", "t2w", "t2f"),
            patients=len({case.rsplit("_", 1)[0] for case in cases}),
            held_out=0.15,
            include=str(listed.resolve()),
        )
        write_atomically(file, text.encode())
        files.append(file)
    return files


def own_federation(
    base: StudyConfig, sites: Sequence[SiteConfig], *, seed: int, out: Path, jobs: int
) -> None:
    """Medfl's own federation of the same sites, and the same without noise."""
    folder = run_folder(out, seed)
    if (folder / SUMMARY.name).exists():
        return
    console.print(f"medfl's own federation: {folder}", highlight=False)
    study = study_in(
        base,
        trust=base.privacy.trust,
        epsilon=base.privacy.epsilon,
        seed=seed,
        baselines=("initial-only", "non-private"),
    )
    with LiveProgress(Console(stderr=True)) as progress:
        run_study(study, sites, out=folder, resume=folder.exists(), progress=progress, jobs=jobs)


def _own_scores(
    base: StudyConfig, variant: Variant, *, seeds: Sequence[int], out: Path
) -> list[Scores]:
    runs = [read_run(run_folder(out, seed)) for seed in seeds]
    return [
        {
            region: by_patient_in(run.scores_of(variant), region, measure="dice")
            for region in base.input.regions
        }
        for run in runs
    ]


def _findings(
    words: str, epsilon: float, runs: Sequence[Scores], *, regions: Sequence[Region]
) -> list[Finding]:
    return [
        Finding(
            words=words,
            epsilon=epsilon,
            region=region,
            dice=estimate_over_runs([run[region] for run in runs]),
        )
        for region in regions
    ]


def _table(findings: Sequence[Finding], *, seeds: int) -> Table:
    patients = findings[0].dice.patients
    table = Table(title=f"Mean Dice on {patients} held-out patients, {seeds} seeds, 95 % interval")
    regions = list(dict.fromkeys(each.region for each in findings))
    table.add_column("what is shared")
    table.add_column("true epsilon", justify="right")
    for region in regions:
        table.add_column(region, justify="right")
    for words, epsilon in dict.fromkeys((each.words, each.epsilon) for each in findings):
        row = [each for each in findings if (each.words, each.epsilon) == (words, epsilon)]
        table.add_row(
            words,
            shown(epsilon),
            *(
                f"{each.dice.value:.3f} ({each.dice.low:.2f} to {each.dice.high:.2f})"
                for each in row
            ),
        )
    return table


def _write(findings: Sequence[Finding], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["shared", "true_epsilon", "region", "patients", "dice", "low", "high"])
        for each in findings:
            dice = each.dice
            writer.writerow(
                [
                    each.words,
                    f"{each.epsilon:g}",
                    each.region,
                    dice.patients,
                    *(f"{number:.4f}" for number in (dice.value, dice.low, dice.high)),
                ]
            )


def _draw(findings: Sequence[Finding]) -> Figure:
    """Whole tumour, or the first region: Dice against the true epsilon, on a logarithmic axis."""
    regions = [each.region for each in findings]
    region: Region = "WT" if "WT" in regions else regions[0]
    rows = [each for each in findings if each.region == region]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for mark, colour, label, chosen in (
        ("o", "C3", "sparse vector technique", [r for r in rows if "vector" in r.words]),
        ("s", "C0", "medfl, for each patient", [r for r in rows if "patient-level" in r.words]),
    ):
        finite = [each for each in chosen if math.isfinite(each.epsilon)]
        axes.errorbar(
            [each.epsilon for each in finite],
            [each.dice.value for each in finite],
            yerr=[
                [each.dice.value - each.dice.low for each in finite],
                [each.dice.high - each.dice.value for each in finite],
            ],
            fmt=mark,
            color=colour,
            capsize=3,
            label=label,
        )
    for words, style in (("public start", ":"), ("all of the update", "--")):
        level = next(each.dice.value for each in rows if each.words == words)
        axes.axhline(level, color="grey", linestyle=style, linewidth=1, label=words)
    axes.set_xscale("log")
    axes.set_xlabel("true epsilon of all rounds: smaller protects more")
    axes.set_ylabel(f"mean Dice, {region}")
    axes.legend()
    return figure


if __name__ == "__main__":
    app()
