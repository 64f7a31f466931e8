"""`medfl adapt`: a model of the hospital's own, which stays at the hospital."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from medfl.cli.advance import shown_advance
from medfl.cli.data import SiteFile
from medfl.cli.models import model_meant
from medfl.cli.numbers import LARGEST_SEED
from medfl.config import load_site
from medfl.config.site import MAX_ADAPTATION_STEPS, MAX_FOLDS

if TYPE_CHECKING:
    from medfl.site.adaptation import Adaptation

_FROM_FILE = "Default: the table [adapt] of the site's file."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(adapt)


def adapt(
    site: SiteFile,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The federated model, or the folder of its run.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="A new file in the site's state folder.")
    ],
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also try training from this public starting model (`medfl pretrain`) alone.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_ADAPTATION_STEPS,
            help=f"Steps of each training run, without noise. {_FROM_FILE}",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, max=MAX_FOLDS, help=f"Folds of the cross-validation. {_FROM_FILE}"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=LARGEST_SEED, help=f"Seed of patients, crops and folds. {_FROM_FILE}"
        ),
    ] = None,
) -> None:
    """Adapt a federated model to a hospital's own patients, for its own use.

    What never leaves a hospital needs no noise. Several candidates are compared on training
    patients that they have not seen, and the best one is saved. The file is as sensitive as the
    patients' images: it stays in the site's folder, and medfl never passes it on.
    """
    config = load_site(site)
    from medfl.segmentation.model_file import STAYS
    from medfl.segmentation.notice import NOTICE
    from medfl.site.own_model import table_of, write_own_model
    from medfl.site.state import hospital_state

    with shown_advance() as advance:
        adaptation = write_own_model(
            hospital_state(config),
            model_meant(model),
            out=out,
            start=start,
            steps=config.adapt.steps if steps is None else steps,
            folds=config.adapt.folds if folds is None else folds,
            seed=config.adapt.seed if seed is None else seed,
            device=config.device,
            watch=lambda part, done, total: advance(f"{config.name}: {part}", done, total),
        )
    Console().print(_table(adaptation, site=config.name))
    typer.echo(f"Model: {out} ({STAYS}; {NOTICE})")
    typer.echo(f"Every patient's Dice: {table_of(out)}")


def _table(adaptation: Adaptation, *, site: str) -> Table:
    """Every candidate, and what it gains over the federated model."""
    from medfl.reporting.estimates import estimate

    federated = adaptation.candidates[0]
    table = Table(
        title=f"{site}: mean Dice of {len(federated.dice)} training patients, by models that did "
        "not see them",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model", no_wrap=True)
    for heading in ("Dice", "over the federated model", ""):
        table.add_column(heading, justify="right")
    for candidate in adaptation.candidates:
        pairs = zip(candidate.dice, federated.dice, strict=True)
        gains = {(site, str(number)): one - two for number, (one, two) in enumerate(pairs)}
        gain = estimate(gains, statistic="mean")
        table.add_row(
            candidate.name,
            f"{candidate.mean:.3f}",
            ""
            if gain is None or candidate is federated
            else f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})",
            "chosen" if candidate is adaptation.chosen else "",
        )
    return table
