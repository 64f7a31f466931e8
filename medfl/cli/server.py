"""A coordinator's commands: make a server, admit and revoke hospitals, serve, run a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.server_run import ServerFolderArgument, run
from medfl.cli.server_runs import logs, runs, stop
from medfl.cli.status import status
from medfl.durable import write_atomically

_HOST = typer.Option(
    help="Name or address by which hospitals reach the server; localhost serves this machine only."
)
_PORT = typer.Option(min=1, max=65535, help="TCP port that hospitals use.")
_LISTEN_PORT = typer.Option(
    min=1,
    max=65535,
    help="TCP port on this machine, if a router or proxy forwards the other one to it.",
)
HospitalName = Annotated[str, typer.Argument(metavar="NAME", help="The hospital's name.")]


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands, and give their group."""
    group = typer.Typer(no_args_is_help=True, help="Run a federation of hospitals, as coordinator.")
    commands = (init, invite, admit, revoke, renew, move, start, run, runs, stop, logs, status)
    for command in commands:
        group.command(command.__name__)(command)
    app.add_typer(group, name="server")
    return group


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The server's folder: new or empty.")
    ],
    host: Annotated[str, _HOST] = "localhost",
    port: Annotated[int, _PORT] = 8443,
    listen_port: Annotated[int | None, _LISTEN_PORT] = None,
    federation: Annotated[
        str, typer.Option("--name", help="The federation's name, as hospitals see it.")
    ] = "medfl federation",
) -> None:
    """Make a server: its certificate authority, certificate, secrets, and a study to start from."""
    from medfl.deployment.coordinator.server_folder import ServerFolder

    server = ServerFolder.create(
        folder, host=host, port=port, listen_port=listen_port, federation=federation
    )
    typer.echo(f"Server: {server.path} (keep it secret, and keep a copy)")
    typer.echo(f"A study to edit: {server.path / 'study.toml'}")
    typer.echo(
        f"For each hospital: `medfl server invite {folder} NAME`, or {server.authority} and the "
        f"address {server.address}"
    )


def invite(
    folder: ServerFolderArgument,
    name: HospitalName,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write NAME.invite.")
    ] = Path(),
) -> None:
    """Reserve a hospital's name and write the file to send: address, certificate, versions.

    The file holds nothing secret and lets nobody in: only `medfl server admit` does, by the keys in
    the hospital's site.pub. A new invitation makes the earlier one void.
    """
    from medfl.deployment.coordinator.server_folder import ServerFolder

    invitation = ServerFolder(folder).invite(name)
    path = out / invitation.file_name
    write_atomically(path, invitation.text.encode())
    typer.echo(f"To send: {path} (invitation {invitation.code})")
    typer.echo(f"Compare by telephone, of its certificate: {invitation.authority_fingerprint}")


def admit(
    folder: ServerFolderArgument,
    bundle: Annotated[
        Path, typer.Argument(metavar="SITE.pub", help="What the hospital's `site init` wrote.")
    ],
    name: HospitalName,
) -> None:
    """Let a hospital take part: bind the keys in its site.pub to its name.

    Ask the hospital for the fingerprint by telephone: the file may have been changed on its way. A
    hospital that is already admitted can bring new keys if its old ones have signed them.
    """
    from medfl.deployment.admission import read_bundle
    from medfl.deployment.coordinator.server_folder import ServerFolder

    received = read_bundle(bundle)
    hospital = ServerFolder(folder).admit(received, name=name)
    if len(hospital.admissions) > 1:
        old = hospital.admissions[-2].site.fingerprint
        typer.echo(f"New keys of {name}, signed by its old ones ({old}), which are shut out.")
    elif received.invitation:
        typer.echo(f"Admitted {name}, which answered its invitation {received.invitation}.")
    else:
        typer.echo(f"Admitted {name}; its site.pub names no invitation.")
    typer.echo(f"Compare by telephone, of its keys: {received.site.fingerprint}")


def revoke(
    folder: ServerFolderArgument,
    name: HospitalName,
    reason: Annotated[str, typer.Option("--reason", help="For the record.")],
) -> None:
    """Shut a hospital out permanently; its name stays reserved and its history is kept."""
    from medfl.deployment.coordinator.server_folder import ServerFolder

    ServerFolder(folder).revoke(name, reason=reason)
    typer.echo(
        f"Revoked {name}. A running server shuts it out within seconds, a stopped one when it "
        "starts. To take part again the hospital needs new keys and a new name."
    )


def renew(folder: ServerFolderArgument) -> None:
    """Make a new server certificate under the same authority; nothing changes for hospitals.

    The old certificate and its key stay beside the new ones as .old. A running server uses the new
    certificate after a restart, which a run under way survives.
    """
    from medfl.deployment.coordinator.server_folder import ServerFolder

    server = ServerFolder(folder)
    certificate = server.renew_certificate()
    typer.echo(f"New certificate: {server.certificate}, valid until {certificate.end:%Y-%m-%d}")
    typer.echo("Restart the server to use it.")


def move(
    folder: ServerFolderArgument,
    host: Annotated[str | None, _HOST] = None,
    port: Annotated[int | None, _PORT] = None,
    listen_port: Annotated[int | None, _LISTEN_PORT] = None,
) -> None:
    """Give a stopped server another address and a certificate for it; what is not given stays.

    The authority stays the same, so that hospitals change their --server and nothing else.
    """
    from medfl.deployment.coordinator.server_folder import ServerFolder

    server = ServerFolder(folder).move(host=host, port=port, listen_port=listen_port)
    typer.echo(f"Moved: {server.path} is reached at {server.address}.")
    typer.echo(f"Each hospital starts its site with --server {server.address}; its ca.crt stays.")


def start(folder: ServerFolderArgument) -> None:
    """Serve the admitted hospitals until SIGTERM or Ctrl-C; the logs are in DIR/logs."""
    from medfl.deployment.coordinator.server import serve
    from medfl.deployment.coordinator.server_folder import ServerFolder

    server = ServerFolder(folder)
    certificate = server.require_usable_certificate()
    if certificate.expires_soon:
        typer.echo(
            f"warning: the server's certificate ends in {certificate.days_left} days; renew it "
            f"with `medfl server renew {folder}` and restart.",
            err=True,
        )
    here = "" if server.listen_port == server.port else f" (port {server.listen_port} here)"
    serve(server, on_ready=lambda: typer.echo(f"Serving {server.address}{here}."))
