"""Commands of a coordinator: make a server, admit hospitals, serve, run a study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medfl.cli.plan import StudyFile
from medfl.config import load_study

ServerFolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's folder, as `medfl server init` made it.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Run a federation of hospitals, as coordinator.")
    group.command("init")(init)
    group.command("admit")(admit)
    group.command("start")(start)
    group.command("run")(run)
    app.add_typer(group, name="server")


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The server's folder: new or empty.")
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Name or address under which hospitals reach the server; localhost serves this "
            "machine only."
        ),
    ] = "localhost",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8443,
) -> None:
    """Make a server: its certificate authority, certificate, secrets, and a study to start from."""
    from medfl.federation.deployment.server_folder import ServerFolder

    server = ServerFolder.create(folder, host=host, port=port)
    typer.echo(f"Server: {server.path} (keep it secret, and keep a copy)")
    typer.echo(f"For the hospitals: {server.authority}, and the address {host}:{port}")


def admit(
    folder: ServerFolderArgument,
    bundle: Annotated[
        Path, typer.Argument(metavar="SITE.pub", help="What the hospital's `site init` wrote.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The hospital's name.")],
) -> None:
    """Let a hospital take part: bind the keys in its site.pub to its name.

    Check on another way, for example by telephone, that the file came from the hospital.
    """
    from medfl.federation.deployment.admission import read_bundle
    from medfl.federation.deployment.server_folder import ServerFolder

    server, site = ServerFolder(folder), read_bundle(bundle)
    server.admit(site, name=name)
    typer.echo(f"Admitted {name}: event key {site.event_key[:16]}...")


def start(folder: ServerFolderArgument) -> None:
    """Serve the admitted hospitals until SIGTERM or Ctrl-C; logs are in DIR/logs."""
    from medfl.federation.deployment.server import serve
    from medfl.federation.deployment.server_folder import ServerFolder

    server = ServerFolder(folder)
    serve(server, on_ready=lambda: typer.echo(f"Serving {server.host}:{server.port}."))


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
    from medfl.cli.live import LiveProgress, quiet_flower
    from medfl.federation.deployment.deployed_study import run_deployed_study
    from medfl.federation.deployment.server_folder import ServerFolder
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
    _print_summary(summary)
    typer.echo(f"Run folder: {out}")
    typer.echo(f"Report: {page}")


def _print_summary(summary: dict[str, Any]) -> None:
    typer.echo(f"Study {summary['study']}: {summary['minutes']:.1f} minutes")
    for name, spent in sorted(summary["sites"].items()):
        typer.echo(f"  {name}: epsilon {spent['epsilon']:.2f} of {spent['budget']:g}")
