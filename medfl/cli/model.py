"""Commands around trained models: predict, evaluate, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfl.cli.advance import shown_advance
from medfl.cli.models import model_meant
from medfl.cli.numbers import finite
from medfl.config import load_site
from medfl.config.site import MODALITY_ORDER, REGION_ORDER, LabelScheme, Layout, SiteData
from medfl.errors import ConfigError

if TYPE_CHECKING:
    from medfl.prediction.evaluation import Evaluation

ModelOption = Annotated[
    Path, typer.Option("--model", metavar="MODEL", help="A run, or a model file.")
]
LayoutOption = Annotated[Layout, typer.Option(help="Layout of a folder.")]
SchemeOption = Annotated[
    LabelScheme | None,
    typer.Option(help="What the masks' values mean. Default: as the layout was published."),
]
ModalityOption = Annotated[
    list[str] | None, typer.Option(help="A modality that is there. Default: all of the layout.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(predict)
    app.command()(evaluate)
    exports = typer.Typer(no_args_is_help=True, help="Pass a trained model on.")
    exports.command("bundle")(bundle)
    app.add_typer(exports, name="export")


def predict(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="The folder of one case or of several, or a site file."
        ),
    ],
    model: ModelOption,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="A folder, or a mask (.nii.gz) for one case."),
    ],
    layout: LayoutOption = "brats2021",
    label_scheme: SchemeOption = None,
    modality: ModalityOption = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Also write the probabilities, one volume per region."
        ),
    ] = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average with the mirrored image; takes twice as long.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Segment a case, a folder of cases, or a site's cohort, on the grid of the images.

    The masks have the names, geometry and labels of the source. Research use only; not a medical
    device.
    """
    from medfl.prediction.cohort import predict_case, predict_cohort
    from medfl.prediction.predictor import Predictor
    from medfl.segmentation.notice import NOTICE

    data = _data(images, layout=layout, label_scheme=label_scheme, modalities=modality)
    if out.suffix and not out.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(
            f"--out: expected a folder, or a name ending in .nii or .nii.gz, found {out.name!r}."
        )
    is_mask = out.name.endswith((".nii", ".nii.gz"))
    if is_mask and images.suffix == ".toml":
        raise ConfigError(
            f"--out: expected a folder for the masks of a site's cohort, found {out.name!r}."
        )
    predictor = Predictor(model_meant(model), device=device, mirrored=tta)
    if is_mask:
        predict_case(predictor, images, data=data, out=out, probabilities=probabilities)
        typer.echo(f"Mask: {out}  ({NOTICE})")
        return
    with shown_advance() as advance:
        failed = predict_cohort(
            predictor,
            data,
            out=out,
            probabilities=probabilities,
            on_case=lambda done, total: advance("segmenting", done, total),
        )
    typer.echo(f"Masks: {out}  ({NOTICE})")
    for one in failed:
        typer.echo(f"failed: {one.case_id}: {one.reason}", err=True)
    if failed:
        raise typer.Exit(2)


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="MASKS", help="Folder that `medfl predict` wrote.")
    ],
    truth: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of the cohort, or its site file.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for tables and picture.")
    ] = None,
    layout: LayoutOption = "brats2021",
    label_scheme: SchemeOption = None,
    modality: ModalityOption = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="Regions to score. Default: all that the label scheme has."),
    ] = None,
    tolerance_mm: Annotated[
        float,
        typer.Option(min=0.0, max=1000.0, callback=finite, help="Tolerance of the surface Dice."),
    ] = 1.0,
    lesion_dilation: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            metavar="VOXELS",
            help="Dilation by which lesions are told apart. BraTS 2023: 3 for gliomas, 1 for "
            "meningiomas and metastases.",
        ),
    ] = 3,
    lesions_above_mm3: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=10.0**6,
            callback=finite,
            metavar="MM3",
            help="Leave out lesions up to this volume. BraTS 2023: 50 for gliomas and meningiomas, "
            "2 for metastases.",
        ),
    ] = 50.0,
) -> None:
    """Score segmentations against the masks of a cohort: Dice, HD95, surface Dice, volumes.

    A region that neither mask has scores 1 (distance 0); one that only one of them has scores 0
    (distance: the image's diagonal). Lesion-wise scores follow BraTS 2023: a missed or a false
    lesion counts as Dice 0 and 374 mm. A patient with several cases counts once. The tables name
    patients: they are for the site's own use.
    """
    from medfl.prediction.evaluation import evaluate as score
    from medfl.prediction.evaluation import write_evaluation
    from medfl.segmentation.lesions import LesionRule

    data = _data(truth, layout=layout, label_scheme=label_scheme, modalities=modality)
    with shown_advance() as advance:
        found = score(
            predictions,
            data,
            regions=[
                name for name in REGION_ORDER if name in _known(region, REGION_ORDER, "region")
            ],
            tolerance_mm=tolerance_mm,
            lesion_rule=LesionRule(dilation_voxels=lesion_dilation, above_mm3=lesions_above_mm3),
            on_case=lambda done, total: advance("scoring", done, total),
        )
    for table in _tables(found):
        Console().print(table)
    if out is not None:
        write_evaluation(found, out)
        typer.echo(f"Tables and picture: {out}")
    for case_id, reason in found.left_out:
        typer.echo(f"left out: {case_id}: {reason}", err=True)
    if found.left_out:
        raise typer.Exit(2)


def _tables(found: Evaluation) -> tuple[Table, Table]:
    """Means over patients: of whole regions, and lesion by lesion."""
    from medfl.reporting.wording import counted

    whole = Table(title=f"mean over patients; surface Dice at {found.tolerance_mm:g} mm")
    for name in ("region", "patients", "Dice", "median", "HD95 mm", "surface", "ml drawn", "ml"):
        whole.add_column(name, justify="left" if name == "region" else "right")
    rule = found.lesion_rule
    lesions = Table(
        title="lesion-wise as BraTS 2023, mean over patients; "
        f"dilation {counted(rule.dilation_voxels, 'voxel')}, lesions above {rule.above_mm3:g} mm³"
    )
    for name in ("region", "patients", "Dice", "HD95 mm", "found", "missed", "false"):
        lesions.add_column(name, justify="left" if name == "region" else "right")
    for row in found.summary():
        whole.add_row(
            str(row["region"]),
            str(row["patients"]),
            *(f"{row[key]:.3f}" for key in ("dice", "median_dice")),
            f"{row['hd95_mm']:.1f}",
            f"{row['surface_dice']:.3f}",
            *(f"{row[key]:.1f}" for key in ("truth_ml", "predicted_ml")),
        )
        lesions.add_row(
            str(row["region"]),
            str(row["patients"]),
            f"{row['lesion_dice']:.3f}",
            f"{row['lesion_hd95_mm']:.1f}",
            *(f"{row[f'lesions_{key}']:.1f}" for key in ("found", "missed", "false")),
        )
    return whole, lesions


def bundle(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A finished run.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder.")],
    although_it_stays: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="Pass on a model that `medfl adapt` made for one hospital. It discloses the "
            "patients; the bundle states the reason.",
        ),
    ] = "",
) -> None:
    """Write the final model as a MONAI bundle, with a model card that states the privacy."""
    from medfl.prediction.monai_bundle import export_bundle

    written = export_bundle(run_dir, out, although_it_stays=although_it_stays)
    typer.echo(f"Bundle: {written}")


def _data(
    path: Path,
    *,
    layout: Layout,
    label_scheme: LabelScheme | None,
    modalities: list[str] | None,
) -> SiteData:
    """A site file's data, or those of a folder."""
    if path.suffix == ".toml":
        return load_site(path).data
    if layout == "custom":
        raise ConfigError(
            "--layout: expected a known layout for a folder, found 'custom'; give a "
            "site file that describes it."
        )
    from medfl.data.layouts.rules import LAYOUTS

    named = _known(modalities, MODALITY_ORDER, "modality")
    there = named or LAYOUTS[layout].modalities
    chosen = tuple(name for name in MODALITY_ORDER if name in there)
    published = LAYOUTS[layout].label_schemes
    if label_scheme is None and len(published) > 1:
        raise ConfigError(
            f"--label-scheme: expected one of {list(published)} with --layout {layout}, which was "
            "published in all of them, found none."
        )
    scheme = label_scheme or published[0]
    return SiteData(root=path, layout=layout, label_scheme=scheme, modalities=chosen)


def _known(given: Sequence[str] | None, order: Sequence[str], option: str) -> list[str]:
    """Options that are out of a list."""
    for name in given or ():
        if name not in order:
            raise ConfigError(f"--{option}: expected one of {list(order)}, found {name!r}.")
    return list(given or ())
