"""How much a network finds in real scans that has been trained on synthetic patients only.

    export MEDFL_REAL_DATA=/path/to/data
    python pipelines/pretraining.py                                both collections
    python pipelines/pretraining.py lgg [--out DIR] [--model FILE]

Trains for TCGA-LGG and for the BraTS 2015 sample as `medfl pretrain` does, and segments every real
case there is. Beside it stands the best global threshold on the brightness of one modality, whose
level is chosen on the very patients that it is scored on, which no honest method may do. With
`--model` a file of `medfl pretrain` is scored and nothing is trained; one that has seen some of
these very patients is refused. The picture shows real scans: it stays in the output folder.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import nibabel
import numpy as np
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from medfl.cli.pretrain import write_with_progress
from medfl.config import StudyConfig, load_study
from medfl.config.site import LabelScheme, Layout, Modality, Region, SiteData
from medfl.data.cache import TensorCache
from medfl.data.cohort import split
from medfl.data.fingerprint import patient_fingerprints
from medfl.data.layouts.survey import names_of_masks, read_cohort
from medfl.data.transforms import Frame, prepare_case
from medfl.prediction.cohort import predict_cohort
from medfl.prediction.evaluation import evaluate
from medfl.prediction.predictor import Predictor
from medfl.reporting.estimates import Estimate, estimate, paired_difference
from medfl.segmentation.metrics import dice_by_level
from medfl.segmentation.model_file import read_provenance
from medfl.site.seen_patients import met_before
from medfl.site.state import OPEN_DATA_KEY

STUDIES = Path(__file__).resolve().parents[1] / "site_configs"
MODEL = "pretrained.safetensors"
THREADS = 2
LEVELS = np.linspace(0.5, 3.5, 301)
# Where a region is bright: the whole tumour in T2-FLAIR, core and rim after contrast.
BRIGHT_IN: Mapping[Region, Modality] = {"WT": "t2f", "TC": "t1c", "ET": "t1c"}
QUANTILES = (0.1, 0.35, 0.65, 0.9)  # of the Dice of the cases that are shown

Dice = dict[tuple[str, str], float]
"""By site and patient."""

console = Console()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Real cases, by site; the study has the same name.

    Attributes:
        held_out: Share of each site's patients that its site file holds out.
    """

    name: str
    layout: Layout
    label_scheme: LabelScheme
    modalities: tuple[Modality, ...]
    has_sites: bool
    held_out: float = 0.0

    def study(self) -> StudyConfig:
        """What is trained on synthetic patients."""
        return load_study(STUDIES / self.name / "study.toml")

    def sites(self, real_data: Path) -> dict[str, SiteData]:
        """The cases of each site."""
        root = real_data / self.name
        if not root.is_dir():
            raise typer.BadParameter(
                f"MEDFL_REAL_DATA: expected a folder {self.name} in {real_data}, found none."
            )
        folders = sorted(root.iterdir()) if self.has_sites else [root]
        return {
            folder.name: SiteData(
                root=folder,
                layout=self.layout,
                label_scheme=self.label_scheme,
                modalities=self.modalities,
            )
            for folder in folders
        }

    def aside(self, sites: Mapping[str, SiteData]) -> set[tuple[str, str]]:
        """Site and id of the patients who may not be looked at while anything is tuned."""
        return {
            (name, patient.patient_id)
            for name, data in sites.items()
            for patient in split(
                read_cohort(data), held_out=self.held_out, key=OPEN_DATA_KEY
            ).held_out
        }


COLLECTIONS = {
    "lgg": Collection(
        name="lgg",
        layout="lgg",
        label_scheme="lgg",
        modalities=("t1n", "t1c", "t2f"),
        has_sites=True,
        held_out=0.25,
    ),
    "brats2015": Collection(
        name="brats2015",
        layout="brats2015",
        label_scheme="brats2015",
        modalities=("t1c", "t2f"),
        has_sites=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The best global threshold for a region.

    Attributes:
        modality: Whose brightness is compared.
        level: Typical tissue is 1.
        dice: Of every patient.
    """

    modality: Modality
    level: float
    dice: Dice


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[lgg] [brats2015]", help="Collections.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")] = Path("runs/pretraining"),
    model: Annotated[
        Path | None, typer.Option("--model", help="Score this file instead of training.")
    ] = None,
) -> None:
    """Train on synthetic patients only, score real ones, and print a table."""
    chosen = names or list(COLLECTIONS)
    if unknown := sorted(set(chosen) - COLLECTIONS.keys()):
        raise typer.BadParameter(
            f"Expected collections among {list(COLLECTIONS)}, found {unknown}."
        )
    if model is not None and len(chosen) != 1:
        raise typer.BadParameter("--model: expected one collection that the model is for.")
    real_data = _real_data()
    sites = {name: COLLECTIONS[name].sites(real_data) for name in chosen}
    if out.exists():
        raise typer.BadParameter(f"--out: expected a new folder, found {out}.")
    table = Table(
        title="Dice on n real patients: mean, and 95 % bootstrap interval", show_lines=True
    )
    public = list(read_provenance(model).get("collections", [])) if model is not None else []
    trained = f"synthetic, {', '.join(public)}" if public else "synthetic only"
    for head in ("", "n", trained, "best threshold", "difference"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    if model is not None:
        require_unseen(model, sites[chosen[0]])
    for name in chosen:
        folder = out / name
        file = model or folder / MODEL
        if model is None:
            write_with_progress(COLLECTIONS[name].study(), out=file)
        _judge(COLLECTIONS[name], sites[name], model=file, folder=folder, table=table)
    console.print(table)
    console.print(f"Scores, masks and pictures of real scans: {out}")


def require_unseen(model: Path, sites: Mapping[str, SiteData]) -> None:
    """Refuse to score a model on patients whom it was trained on."""
    seen = read_provenance(model).get("seen", [])
    if not seen:
        return
    with tempfile.TemporaryDirectory() as folder:
        for site, data in sites.items():
            images = patient_fingerprints(
                read_cohort(data).patients,
                data=data,
                cache=TensorCache(Path(folder)),
                threads=THREADS,
            )
            if known := met_before(images, seen=seen):
                raise typer.BadParameter(
                    f"--model: expected one that has seen none of the patients of {site}, found "
                    f"{len(known)} whom it has."
                )


def _judge(
    collection: Collection,
    sites: Mapping[str, SiteData],
    *,
    model: Path,
    folder: Path,
    table: Table,
) -> None:
    """Segment, score, write, and add a row a region."""
    regions = collection.study().input.regions
    aside = collection.aside(sites)
    found = network_dice(model, sites, regions=regions, out=folder)
    for region in regions:
        rival = best_threshold(sites, region)
        _write_scores(folder / f"{region}.csv", found[region], rival)
        parts = {f"{collection.name} {region}": found[region].keys()}
        if aside:
            parts["not looked at"] = aside
        for label, patients in parts.items():
            network, threshold = (
                {key: dice for key, dice in each.items() if key in patients}
                for each in (found[region], rival.dice)
            )
            best = _shown(estimate(threshold, statistic="mean"))
            table.add_row(
                label,
                str(len(network)),
                _shown(estimate(network, statistic="mean")),
                f"{best}\n{rival.modality} > {rival.level:.2f}",
                _shown(paired_difference(network, threshold)),
            )
    _draw(sites, found["WT"], out=folder).savefig(folder / "cases.png", dpi=110)


def network_dice(
    model: Path, sites: Mapping[str, SiteData], *, regions: Sequence[Region], out: Path
) -> dict[Region, Dice]:
    """Segment and score every case of every site, as `medfl predict` and `evaluate` do.

    Args:
        model: A model file.
        sites: The real cases.
        regions: What to score.
        out: Folder of the masks.
    """
    predictor = Predictor(model, device="cpu")
    found: dict[Region, Dice] = {region: {} for region in regions}
    with Progress(console=Console(stderr=True)) as progress:
        for site, data in sites.items():
            task = progress.add_task(f"segmenting {site}", total=None)
            failed = predict_cohort(
                predictor,
                data,
                out=out / "masks" / site,
                on_case=lambda done, total, task=task: progress.update(
                    task, completed=done, total=total
                ),
            )
            judged = evaluate(out / "masks" / site, data, regions=regions)
            for one in failed:
                console.print(f"failed: {one.case_id}: {one.reason}")
            for row in judged.by_patient():
                key = (site, str(row["patient"]))
                found[next(r for r in regions if r == row["region"])][key] = float(row["dice"])
    return found


def best_threshold(sites: Mapping[str, SiteData], region: Region) -> Rival:
    """The global threshold with the highest mean Dice over these very patients.

    Args:
        sites: The real cases.
        region: What is taken to be brighter than the level.
    """
    modality = BRIGHT_IN[region]
    keys: list[tuple[str, str]] = []
    rows: list[NDArray[np.float64]] = []
    for site, data in sites.items():
        frame = Frame(
            modalities=(modality,),
            regions=(region,),
            spacing="native",
            label_scheme=data.label_scheme,
        )
        for patient in read_cohort(data).patients:
            cases = [prepare_case(case, frame) for case in patient.cases]
            by_case = [
                dice_by_level(
                    case.image_CDHW[0].numpy(),
                    case.regions_RDHW[0].numpy().astype(bool),
                    levels=LEVELS,
                )
                for case in cases
            ]
            keys.append((site, patient.patient_id))
            rows.append(np.mean(by_case, axis=0))
    best = int(np.mean(rows, axis=0).argmax())
    dice = {key: float(row[best]) for key, row in zip(keys, rows, strict=True)}
    return Rival(modality=modality, level=float(LEVELS[best]), dice=dice)


def _draw(sites: Mapping[str, SiteData], dice: Dice, *, out: Path) -> Figure:
    """A few cases from bad to good: FLAIR, the mask drawn by hand, and the network's."""
    ranked = sorted(dice, key=lambda key: dice[key])
    shown = list(dict.fromkeys(ranked[int(q * len(ranked))] for q in QUANTILES))
    figure = Figure(figsize=(3.2 * len(shown), 3.6), layout="constrained")
    columns = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (site, patient_id) in zip(columns, shown, strict=True):
        data = sites[site]
        cohort = read_cohort(data).patients
        case = next(each for each in cohort if each.patient_id == patient_id).cases[0]
        predicted = out / "masks" / site / names_of_masks(cohort, data=data)[case.case_id]
        truth = _voxels(case.mask)
        slice_number = int(truth.astype(bool).sum(axis=(0, 1)).argmax())
        axes.imshow(_voxels(case.images["t2f"])[..., slice_number].T, cmap="gray")
        for mask, colour in ((truth, "tab:green"), (_voxels(predicted), "magenta")):
            plane = mask[..., slice_number].T > 0.5
            if plane.any():
                axes.contour(plane, levels=[0.5], colors=[colour], linewidths=1)
        axes.set_title(f"{site}, Dice {dice[site, patient_id]:.2f}", fontsize=9)
        axes.set_axis_off()
    figure.suptitle("real scans: by hand (green), by the model (magenta)")
    return figure


def _voxels(path: Path | None) -> NDArray[np.float32]:
    return np.asarray(nibabel.load(path).dataobj, dtype=np.float32)


def _write_scores(path: Path, found: Dice, rival: Rival) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["site", "patient", "model", "threshold"])
        writer.writerows([*key, f"{found[key]:.4f}", f"{rival.dice[key]:.4f}"] for key in found)


def _shown(value: Estimate | None) -> str:
    return "none" if value is None else f"{value.value:.3f}\n{value.low:.3f} to {value.high:.3f}"


def _real_data() -> Path:
    name = os.environ.get("MEDFL_REAL_DATA", "")
    if not name or not Path(name).is_dir():
        raise typer.BadParameter(
            "Expected the environment variable MEDFL_REAL_DATA to name the folder of the real "
            f"cases, with the folders lgg and brats2015, found {name!r}."
        )
    return Path(name)


if __name__ == "__main__":
    app()
