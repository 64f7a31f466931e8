"""Commands around a site's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SiteFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The site's state folder, as in its site file.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Make and exchange the keys of a site.")
    group.command("init")(init)
    group.command("rotate")(rotate)
    app.add_typer(group, name="site")


def init(folder: SiteFolder) -> None:
    """Make a site's keys, and the file site.pub for the coordinator.

    The keys (DIR/keys) stay at the site: a node key with which it joins the federation, and an
    event key that signs what its ledger was charged for. Back them up where the ledger is.
    """
    from medfl.federation.site_keys import PUBLIC, SiteKeys
    from medfl.federation.workplace import KEYS

    keys = SiteKeys.create(folder / KEYS)
    keys.write_public(folder / PUBLIC, folder=folder / KEYS)
    typer.echo(f"Keys: {folder / KEYS} (keep them secret, and keep a copy)")
    typer.echo(f"For the coordinator: {folder / PUBLIC}")


def rotate(folder: SiteFolder) -> None:
    """Exchange a site's keys, for example after a copy may have been seen by others.

    The old event key signs the new one and is then deleted; what it signed can still be verified.
    The coordinator needs the new site.pub.
    """
    from medfl.federation.site_keys import PUBLIC, SiteKeys
    from medfl.federation.workplace import KEYS

    keys = SiteKeys.read(folder / KEYS).rotate(folder / KEYS)
    keys.write_public(folder / PUBLIC, folder=folder / KEYS)
    typer.echo(f"New keys: {folder / KEYS} (exchange {len(keys.rotations)})")
    typer.echo(f"For the coordinator: {folder / PUBLIC}")
