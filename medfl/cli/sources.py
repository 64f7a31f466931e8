"""Commands that turn public collections into sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.advance import shown_advance
from medfl.cli.numbers import finite


def register(app: typer.Typer) -> None:
    """Add the commands."""
    sites = typer.Typer(no_args_is_help=True, help="Site files of public collections.")
    sites.command("from-fets")(from_fets)
    app.add_typer(sites, name="sites")
    imports = typer.Typer(no_args_is_help=True, help="Convert other file formats to NIfTI.")
    imports.command("lgg")(lgg)
    app.add_typer(imports, name="import")


def from_fets(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the FeTS 2022 cases.")],
    partition: Annotated[
        Path, typer.Option("--partition", help="partitioning_1.csv or partitioning_2.csv.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the site files.")],
    held_out: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, callback=finite, help="Fraction of patients that is held out."
        ),
    ] = 0.2,
    at_least: Annotated[
        int, typer.Option(min=1, max=10**6, help="Leave out institutions with fewer cases.")
    ] = 10,
) -> None:
    """Write one site file for each institution of FeTS 2022."""
    from medfl.data.layouts.fets import write_fets_sites

    files = write_fets_sites(
        root, partition=partition, out=out, held_out=held_out, at_least=at_least
    )
    for file in files:
        typer.echo(file)


def lgg(
    source: Annotated[
        Path, typer.Argument(metavar="KAGGLE_3M", help="The collection's folder kaggle_3m.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
) -> None:
    """Convert the TCGA-LGG slices (TIFF) to NIfTI, with a folder and a site file per hospital."""
    from medfl.data.layouts.lgg_tiff import import_lgg

    with shown_advance() as advance:
        patients = import_lgg(
            source,
            out,
            on_patient=lambda done, total: advance("importing patients", done, total),
        )
    sites = sorted({patient.site for patient in patients})
    for site in sites:
        members = [patient for patient in patients if patient.site == site]
        typer.echo(f"{out / f'{site}.toml'}: {len(members)} patients")
    for patient in patients:
        if patient.replaced:
            typer.echo(
                f"{patient.patient_id}: {' and '.join(patient.replaced)} hold T2-FLAIR, since the "
                "hospital had no such sequence"
            )
