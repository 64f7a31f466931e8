"""Commands of a hospital: make and exchange a site's keys, and run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SiteFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The site's state folder, as in its site file.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Make and exchange the keys of a site, and run it."
    )
    group.command("init")(init)
    group.command("rotate")(rotate)
    group.command("start")(start)
    app.add_typer(group, name="site")


def init(folder: SiteFolder) -> None:
    """Make a site's keys, site.pub for the coordinator, and a commented site file to edit.

    The keys (DIR/keys) stay at the site: a node key with which it joins the federation, and an
    event key that signs what its ledger was charged for. Back them up where the ledger is.
    """
    from medfl.config.site_template import SITE_FILE, write_site_template
    from medfl.federation.site_keys import KEYS, PUBLIC, SiteKeys

    if write_site_template(folder / SITE_FILE, name=folder.resolve().name):
        typer.echo(f"To edit: {folder / SITE_FILE}")
    keys = SiteKeys.create(folder / KEYS)
    keys.write_public(folder / PUBLIC, folder=folder / KEYS)
    typer.echo(f"Keys: {folder / KEYS} (keep them secret, and keep a copy)")
    typer.echo(f"For the coordinator: {folder / PUBLIC}")


def rotate(folder: SiteFolder) -> None:
    """Exchange a site's keys, for example after a copy may have been seen by others.

    The old event key signs the new one and is then deleted; what it signed can still be verified.
    The coordinator needs the new site.pub.
    """
    from medfl.federation.site_keys import KEYS, PUBLIC, SiteKeys

    keys = SiteKeys.read(folder / KEYS).rotate(folder / KEYS)
    keys.write_public(folder / PUBLIC, folder=folder / KEYS)
    typer.echo(f"New keys: {folder / KEYS} (exchange {len(keys.rotations)})")
    typer.echo(f"For the coordinator: {folder / PUBLIC}")


def start(
    site: Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")],
    server: Annotated[
        str, typer.Option("--server", metavar="HOST:PORT", help="The coordinator's server.")
    ],
    authority: Annotated[
        Path, typer.Option("--ca", metavar="CA.crt", help="The coordinator's ca.crt.")
    ],
) -> None:
    """Take part in a federation until SIGTERM or Ctrl-C; one outbound connection, no open port.

    The site runs the medfl package that is installed here and refuses any other app that the server
    ships. The site file decides what it accepts, and the ledger pays for it.
    """
    from medfl.federation.deployment.site_node import run_site

    run_site(site, server=server, authority=authority)
