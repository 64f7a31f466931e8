"""Commands of a coordinator: make a server, bring hospitals in and out, serve, run a study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medfl.cli.plan import StudyFile
from medfl.cli.status import status
from medfl.cli.summary import print_summary
from medfl.config import load_study
from medfl.durable import write_atomically

ServerFolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's folder, as `medfl server init` made it.")
]
_HOST = typer.Option(
    help="Name or address under which hospitals reach the server; localhost serves this machine "
    "only."
)
_PORT = typer.Option(min=1, max=65535, help="TCP port that hospitals use.")
_LISTEN_PORT = typer.Option(
    min=1,
    max=65535,
    help="TCP port of this machine, where a router or proxy leads the other one to it.",
)
HospitalName = Annotated[str, typer.Argument(metavar="NAME", help="The hospital's name.")]


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands, and give their group."""
    group = typer.Typer(no_args_is_help=True, help="Run a federation of hospitals, as coordinator.")
    for command in (init, invite, admit, revoke, renew, move, start, run, status):
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
        str, typer.Option("--name", help="The federation's name, as hospitals read it.")
    ] = "medfl federation",
) -> None:
    """Make a server: its certificate authority, certificate, secrets, and a study to start from."""
    from medfl.deployment.coordinator.server_folder import ServerFolder

    server = ServerFolder.create(
        folder, host=host, port=port, listen_port=listen_port, federation=federation
    )
    typer.echo(f"Server: {server.path} (keep it secret, and keep a copy)")
    typer.echo(
        f"For each hospital: `medfl server invite {folder} NAME`, or {server.authority} and the "
        f"address {server.address}"
    )


def invite(
    folder: ServerFolderArgument,
    name: HospitalName,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where NAME.invite goes.")
    ] = Path(),
) -> None:
    """Reserve a hospital's name and write the file to send: address, certificate, versions.

    The file holds nothing secret and lets nobody in: `medfl server admit` does, by the keys in the
    hospital's site.pub. Inviting again makes the earlier file void.
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

    Ask the hospital by telephone for the fingerprint: the file may have been changed on its way. A
    hospital that is admitted already may bring new keys that its old ones have signed.
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
    """Shut a hospital out for ever; its name stays reserved and its history stays."""
    from medfl.deployment.coordinator.server_folder import ServerFolder

    ServerFolder(folder).revoke(name, reason=reason)
    typer.echo(
        f"Revoked {name}. A running server shuts it out within seconds, one that does not run when "
        "it starts. To take part again it needs new keys and a new name."
    )


def renew(folder: ServerFolderArgument) -> None:
    """Make a new server certificate under the same authority; hospitals change nothing.

    The old one and its key stay beside it as .old. A running server shows the new one after a
    restart, which a run under way survives.
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
    """Give a stopped server another address, with a certificate for it; what is not named stays.

    The authority stays too, so that hospitals change their --server and nothing else.
    """
    from medfl.deployment.coordinator.server_folder import ServerFolder

    server = ServerFolder(folder).move(host=host, port=port, listen_port=listen_port)
    typer.echo(f"Moved: {server.path} is reached at {server.address}.")
    typer.echo(f"Each hospital starts its site with --server {server.address}; its ca.crt stays.")


def start(folder: ServerFolderArgument) -> None:
    """Serve the admitted hospitals until SIGTERM or Ctrl-C; logs are in DIR/logs."""
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


def run(
    folder: ServerFolderArgument,
    study: StudyFile,
    out: Annotated[
        Path, typer.Option("--out", help="The run folder: new or empty, unless --resume.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
) -> None:
    """Run a study with the hospitals that are connected to this machine's server."""
    loaded = load_study(study)
    from medfl.cli.live import LiveProgress
    from medfl.deployment.coordinator.deployed_study import run_deployed_study
    from medfl.deployment.coordinator.server_folder import ServerFolder
    from medfl.protocol.flower_log import quiet_flower
    from medfl.reporting.report import write_report

    quiet_flower()
    with LiveProgress(Console(stderr=True)) as progress:
        summary = run_deployed_study(
            loaded,
            folder=ServerFolder(folder),
            out=out,
            resume=resume,
            progress=progress,
            command=shlex.join(
                ["medfl", "server", "run", str(folder), str(study), "--out", str(out)]
            ),
        )
        progress.phase("report")
        page = write_report(out)
    print_summary(summary)
    typer.echo(f"Run folder: {out}")
    typer.echo(f"Report: {page}")
