"""Commands for the public starting point of private training: make one, list what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.advance import shown_advance
from medfl.cli.plan import StudyFile
from medfl.config import SiteConfig, StudyConfig, load_site, load_study

if TYPE_CHECKING:
    from medfl.study.starting_point import StartingPoint


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(pretrain)
    app.command()(starts)


def pretrain(
    study: StudyFile,
    sites: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SITE.toml]...", help="Site files of open data to train on as well."
        ),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The model file to write; must not exist yet.")
    ],
) -> None:
    """Train a starting model on synthetic patients, which costs no privacy.

    The study's section `synthetic` says which patients, how many, and for how many steps. On the
    same machine the same study gives the same weights.

    With site files of open data, the model is then trained on their training patients for
    `public_steps`, without noise. No guarantee covers these patients: the study has to name them,
    and a hospital that has one of them takes no part.
    """
    made = write_with_progress(
        load_study(study), out=out, sites=[load_site(path) for path in sites or []]
    )
    where = json.dumps(os.path.relpath(out.resolve(), study.resolve().parent))
    typer.echo(f"Model: {out} ({_whom(made)})")
    typer.echo(f"To start runs from it, in [synthetic] of {study}:")
    typer.echo(f"  start = {{ file = {where}, {made.table} }}")
    if made.seen_sha256 is not None:
        typer.echo("Hospitals that take part have in [privacy] of their site file:")
        typer.echo(f'  seen_lists = ["{made.seen_sha256}"]')
    typer.echo(f"To see what it finds: medfl predict IMAGES --model {out} -o MASKS")


def starts() -> None:
    """List the starting models that come with medfl, each with the line by which a study uses it.

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


def _whom(made: StartingPoint) -> str:
    if not made.collections:
        return "synthetic patients only; costs no privacy"
    public = ", ".join(f"{number} of {name}" for name, number in made.collections.items())
    return f"synthetic patients, and public ones whom no guarantee covers: {public}"


def write_with_progress(
    study: StudyConfig, *, out: Path, sites: Sequence[SiteConfig] = ()
) -> StartingPoint:
    """Pretrain and write the file, with bars on standard error.

    Torch has one thread: several would round sums in another order, and a file that is made again
    must have the same bytes, however many cores there are.

    Returns:
        What a study has to say of the file.

    Raises:
        MedflError: As `write_starting_point`.
    """
    from medfl.study.starting_point import write_starting_point

    with shown_advance() as advance:
        return write_starting_point(
            study,
            out=out,
            sites=sites,
            threads=1,
            drawn=lambda done, total: advance(f"{study.id}: synthetic patients", done, total),
            advance=lambda done, total: advance(f"{study.id}: training steps", done, total),
            on_patients=lambda done, total: advance(f"{study.id}: public patients", done, total),
        )
