"""Commands that back up and restore what cannot be made again of a site or a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfl.deployment.backup import Manifest
    from medfl.deployment.hospital.backup import RestoredSite

Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A new file.")]
BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.")]
To = Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder: new or empty.")]


def register(site: typer.Typer, server: typer.Typer) -> None:
    """Add the commands.

    Args:
        site: The commands of a hospital.
        server: Those of a coordinator.
    """
    site.command("backup")(backup_site)
    site.command("restore")(restore_site)
    server.command("backup")(backup_server)
    server.command("restore")(restore_server)


def backup_site(
    site: Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")], out: Out
) -> None:
    """Back up a site's keys, site file and ledger to one file; the site may keep running.

    The file holds private keys in plain text, with mode 0600: encrypt it before it goes anywhere
    else. It never contains images, cache, models, logs, outbox or secure sums, nor the machine's
    witness.
    """
    from medfl.deployment.hospital.backup import backup_site as back_up

    manifest, head = back_up(site, out=out)
    _say_written(out, manifest)
    typer.echo(
        f"The ledger in it ends with entry {head.sequence}. What is charged from now on is not in "
        "it; the machine's witness remembers it."
    )


def restore_site(file: BackupFile, to: To) -> None:
    """Restore a site from its backup into a new folder, once all of it has been checked.

    A ledger that is older than what this machine's witness remembers is refused until `medfl ledger
    acknowledge` has charged what is missing.
    """
    from medfl.deployment.hospital.backup import restore_site as bring_back

    restored = bring_back(file, to=to)
    _say_restored(to, restored.manifest)
    if restored.has_left:
        typer.echo(
            "The site had left for good: this is its record, not a site that can be started."
        )
        return
    _say_ledger(restored)
    file_in = to / "site.toml"
    typer.echo("Next:")
    if restored.state != to.resolve():
        typer.echo(f'  edit {file_in}: state = "{to.resolve()}"')
    if restored.other is not None:
        typer.echo(
            f"  the ledger is in {restored.other} too: go on with that one if it is whole, else "
            "move that folder away"
        )
    if not restored.is_newest:
        typer.echo(f"  medfl ledger acknowledge {file_in} --reason 'restored from a backup'")
    typer.echo(f"  medfl check {file_in}")
    typer.echo(f"  medfl site start {file_in} --server HOST:PORT --ca {to / 'ca.crt'}")


def backup_server(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")], out: Out
) -> None:
    """Back up a server's authority, certificate, secrets and hospitals to one file.

    The file holds private keys in plain text, with mode 0600: encrypt it before it goes anywhere
    else. Run folders are not in it: copy them as folders. The server may keep running; make a new
    backup whenever a hospital has been admitted or revoked.
    """
    from medfl.deployment.coordinator.backup import backup_server as back_up

    _say_written(out, back_up(folder, out=out))


def restore_server(file: BackupFile, to: To) -> None:
    """Restore a server from its backup into a new folder, once all of it has been checked."""
    from medfl.deployment.coordinator.backup import restore_server as bring_back

    manifest, server = bring_back(file, to=to)
    _say_restored(to, manifest)
    admitted = ", ".join(server.sites()) or "nobody"
    typer.echo(
        f"Admitted, as on that day: {admitted}. Hospitals that were revoked since then have to "
        "be revoked again before the server starts."
    )
    typer.echo("Next:")
    typer.echo(f"  medfl server status {to}")
    typer.echo(f"  medfl server start {to}")


def _say_written(out: Path, manifest: Manifest) -> None:
    typer.echo(
        f"Backup: {out} ({manifest.name}, {len(manifest.members)} files; it holds private keys: "
        "keep it secret)"
    )


def _say_restored(to: Path, manifest: Manifest) -> None:
    typer.echo(
        f"Restored: {to} ({manifest.name}, of {manifest.day}, written by medfl {manifest.medfl})"
    )


def _say_ledger(restored: RestoredSite) -> None:
    text = f"The ledger in it ends with entry {restored.head.sequence}"
    if restored.is_newest:
        typer.echo(f"{text}; this machine's witness knows of nothing later.")
    elif restored.remembered is None:
        typer.echo(
            f"{text}, and this machine's witness does not know it: what was charged after the "
            "backup is remembered by the witness of the machine where it was. Move that witness "
            "here first if it still exists (OPERATIONS.md)."
        )
    else:
        typer.echo(
            f"{text}; this machine's witness remembers entry {restored.remembered.sequence}. "
            "Nothing is computed until the difference is charged."
        )
