"""A hospital's commands: make and replace a site's keys, run it, pause it, and leave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.numbers import finite
from medfl.cli.site_status import SiteFile, status

SiteFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The site's state folder, as in its site file.")
]


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands, and give their group."""
    group = typer.Typer(
        no_args_is_help=True, help="Make and replace a site's keys, run it, pause it, and leave."
    )
    group.command("init")(init)
    group.command("rotate")(rotate)
    group.command("start")(start)
    group.command("status")(status)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("leave")(leave)
    group.command("clean")(clean)
    app.add_typer(group, name="site")
    return group


def init(
    folder: SiteFolder,
    invite: Annotated[
        Path | None,
        typer.Option(
            "--invite", metavar="NAME.invite", help="The invitation that the coordinator sent."
        ),
    ] = None,
) -> None:
    """Make a site's keys, site.pub for the coordinator, and a commented site file to edit.

    The keys (DIR/keys) stay at the site: a node key with which it joins the federation, and an
    event key that signs what its ledger was charged for. Back them up together with the ledger.
    """
    from medfl.config.site_template import SITE_FILE, write_site_template
    from medfl.deployment.hospital.acts import note_joining
    from medfl.deployment.hospital.participation import require_not_left
    from medfl.deployment.invitation import KEPT, read_invitation
    from medfl.durable import write_atomically
    from medfl.protocol.keys import KEYS, PUBLIC, SiteKeys

    require_not_left(folder)
    invitation = read_invitation(invite) if invite is not None else None
    if invitation is not None:
        invitation.require_same_versions()
    name = folder.resolve().name if invitation is None else invitation.name
    if write_site_template(folder / SITE_FILE, name=name):
        typer.echo(f"To edit: {folder / SITE_FILE}")
    keys = SiteKeys.create(folder / KEYS)
    code = "" if invitation is None else invitation.code
    keys.write_public(folder / PUBLIC, folder=folder / KEYS, invitation=code)
    typer.echo(f"Keys: {folder / KEYS} (keep them secret, and keep a copy)")
    _echo_public(folder / PUBLIC)
    note_joining(folder, invitation)
    if invitation is not None:
        write_atomically(folder / "ca.crt", invitation.certificate.encode())
        write_atomically(folder / KEPT, invitation.text.encode())
        typer.echo(
            f"Server: {invitation.server}, trusted by {folder / 'ca.crt'} (fingerprint "
            f"{invitation.authority_fingerprint}: compare it by telephone)"
        )


def rotate(folder: SiteFolder) -> None:
    """Replace a site's keys, for example because somebody else may have seen a copy.

    The old event key signs the new one and is then deleted; what it signed can still be verified.
    The coordinator needs the new site.pub.
    """
    from medfl.deployment.hospital.participation import require_not_left
    from medfl.protocol.keys import KEYS, PUBLIC, SiteKeys
    from medfl.site.audit_log import AuditLog

    require_not_left(folder)
    keys = SiteKeys.read(folder / KEYS).rotate(folder / KEYS)
    keys.write_public(folder / PUBLIC, folder=folder / KEYS)
    typer.echo(f"New keys: {folder / KEYS} (exchange {len(keys.rotations)})")
    _echo_public(folder / PUBLIC)
    typer.echo("Once the coordinator has admitted it, start the site again.")
    AuditLog(folder).note_exchanges()


def start(
    site: SiteFile,
    server: Annotated[
        str, typer.Option("--server", metavar="HOST:PORT", help="The coordinator's server.")
    ],
    authority: Annotated[
        Path, typer.Option("--ca", metavar="CA.crt", help="The coordinator's ca.crt.")
    ],
) -> None:
    """Take part in a federation until SIGTERM or Ctrl-C, over one outbound connection.

    No port is opened. The site runs the medfl package that is installed here and refuses any other
    app that the server ships. The site file decides what it accepts, and the ledger pays for it. A
    page for monitoring, if the file asks for one, can be reached from this machine only.
    """
    from medfl.deployment.hospital.site_node import run_site
    from medfl.preflight.network import check_server

    run_site(
        site, server=server, authority=authority, look=lambda: check_server(server, ca=authority)
    )


def pause(site: SiteFile) -> None:
    """Refuse every proposal and task until `medfl site resume`, even after a restart.

    The site stays connected, and nothing is charged. A round under way, which is paid for, is
    finished.
    """
    from medfl.deployment.hospital.participation import pause as pause_site
    from medfl.deployment.hospital.participation import require_not_left
    from medfl.deployment.hospital.site_file import load_hospital
    from medfl.site.audit_log import AuditLog

    config = load_hospital(site)
    require_not_left(config.state)
    pause_site(config.state)
    typer.echo(f"Paused: {config.name} refuses every message until `medfl site resume`.")
    AuditLog(config.state).note("pause")  # afterwards: nothing may keep a site from pausing


def resume(site: SiteFile) -> None:
    """Take part again after `medfl site pause`."""
    from medfl.deployment.hospital.participation import require_not_left
    from medfl.deployment.hospital.participation import resume as resume_site
    from medfl.deployment.hospital.site_file import load_hospital
    from medfl.site.audit_log import AuditLog

    config = load_hospital(site)
    require_not_left(config.state)
    AuditLog(config.state).note("resume")  # first: what cannot be written down is not resumed
    resume_site(config.state)
    typer.echo(f"Resumed: {config.name} takes part.")


def leave(
    site: SiteFile,
    reason: Annotated[str, typer.Option(help="Why, in your own words; it is kept at the site.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave for good: stop the site and delete its private keys; this can't be undone.

    The ledger, the witness and the updates that were paid for are kept, and so is a last signed
    export of the ledger. What the patients have spent stays spent, wherever they take part next.
    """
    from medfl.deployment.hospital.departure import leave as leave_for_good
    from medfl.deployment.hospital.site_file import load_hospital

    config = load_hospital(site)
    if not yes:
        typer.confirm(f"Delete the private keys of {config.name} and leave for good?", abort=True)
    export = leave_for_good(config, reason=reason)
    typer.echo(f"Left: the private keys of {config.name} are deleted; delete their backup too.")
    typer.echo(f"The ledger, for an auditor: {export}")
    typer.echo("Tell the coordinator, so that the site is taken off the list of hospitals.")


def clean(
    site: SiteFile,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than",
            metavar="DAYS",
            min=0,
            max=36500,
            callback=finite,
            help="Age of what is deleted.",
        ),
    ] = 30.0,
) -> None:
    """Delete old updates that were sent and should not be needed again; the ledger is kept.

    If a server does ask for one of them, its round is computed and charged again: that costs
    budget, never privacy.
    """
    from medfl.deployment.hospital.site_file import load_hospital
    from medfl.site.state import hospital_state

    site_state = hospital_state(load_hospital(site))
    typer.echo(f"Deleted: {site_state.prune_outbox(older_than_days=older_than)} updates.")


def _echo_public(path: Path) -> None:
    from medfl.deployment.admission import read_bundle

    typer.echo(
        f"For the coordinator: {path} (fingerprint {read_bundle(path).site.fingerprint}: compare "
        "it by telephone)"
    )
