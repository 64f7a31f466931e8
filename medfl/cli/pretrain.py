"""Commands around the public starting point of private training: make one, list what is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.advance import shown_advance
from medfl.cli.plan import StudyFile
from medfl.config import StudyConfig, load_study


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(pretrain)
    app.command()(starts)


def pretrain(
    study: StudyFile,
    out: Annotated[Path, typer.Option("-o", "--out", help="The model file: a new one.")],
) -> None:
    """Train on synthetic patients only: a model that costs no privacy, and a study's start.

    The study's section `synthetic` says which patients, how many, and for how many steps. The same
    study gives the same weights on the same machine.
    """
    sha256 = write_with_progress(load_study(study), out=out)
    where = json.dumps(os.path.relpath(out.resolve(), study.resolve().parent))
    typer.echo(f"Model: {out} (synthetic patients only; costs no privacy)")
    typer.echo(f"To start runs from it, in [synthetic] of {study}:")
    typer.echo(f'  start = {{ file = {where}, sha256 = "{sha256}" }}')
    typer.echo(f"To see what it finds: medfl predict IMAGES --model {out} -o MASKS")


def starts() -> None:
    """List the starting models that come with medfl, each with the line by which a study takes it.

    They were trained on synthetic patients only and cost no privacy.
    """
    from medfl.study.shipped_starts import shipped_starts

    found = shipped_starts()
    if not found:
        typer.echo("This installation of medfl comes with no starting model.")
    for each in found:
        spec, synthetic = each.spec, each.provenance["synthetic"]
        crop = " x ".join(map(str, spec.crop_size))
        spacing = spec.spacing if spec.spacing == "native" else f"{list(spec.spacing)} mm"
        typer.echo(
            f"{each.name}: {', '.join(spec.modalities)} to {', '.join(spec.regions)}; "
            f"{spec.network}, spacing {spacing}, crops of {crop}"
        )
        typer.echo(
            f"  trained for {synthetic['pretraining_steps']} steps on "
            f"{synthetic['pretraining_patients']} synthetic patients of {synthetic['variety']} "
            f"variety, by medfl {each.provenance['medfl']}; costs no privacy"
        )
        typer.echo(f'  start = {{ shipped = "{each.name}", sha256 = "{each.sha256}" }}')


def write_with_progress(study: StudyConfig, *, out: Path) -> str:
    """Pretrain and write the file, with all of torch's threads and two bars on standard error.

    Returns:
        SHA-256 of the file, as hexadecimal text.

    Raises:
        MedflError: As `write_starting_point`.
    """
    import torch

    from medfl.study.starting_point import write_starting_point

    with shown_advance() as advance:
        return write_starting_point(
            study,
            out=out,
            threads=torch.get_num_threads(),
            drawn=lambda done, total: advance(f"{study.id}: synthetic patients", done, total),
            advance=lambda done, total: advance(f"{study.id}: training steps", done, total),
        )
