"""`medfl server run`: a study over the hospitals of a server, with a terminal or without one.

Without one it is the same command in a session of its own, whose output goes to the log of the run
as soon as the run has begun; until then the person who started it sees why it cannot begin.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from medfl.cli.ends import STOPPED
from medfl.cli.live import LiveProgress
from medfl.cli.plan import StudyFile
from medfl.cli.run_log import Together, log_console
from medfl.cli.summary import print_summary
from medfl.config import StudyConfig, load_study
from medfl.errors import MedflError

if TYPE_CHECKING:
    from medfl.deployment.coordinator.run_book import RunRecord
    from medfl.deployment.coordinator.server_folder import ServerFolder

DETACHED = "MEDFL_DETACHED_RUN"
"""Environment variable: this command is the one that goes on without a terminal."""

ServerFolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's folder, as `medfl server init` made it.")
]


def run(
    folder: ServerFolderArgument,
    study: StudyFile,
    out: Annotated[
        Path, typer.Option("--out", help="The run folder: new or empty, unless --resume.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out where it stopped.")
    ] = False,
    require_all: Annotated[
        bool,
        typer.Option(
            "--require-all",
            help="Wait until every admitted hospital is connected and has answered; stop if one "
            "refuses. Without this option the study begins once enough have agreed.",
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Return as soon as the run has begun; it continues without this terminal.",
        ),
    ] = False,
) -> None:
    """Run a study with the hospitals that are connected to this machine's server.

    Ctrl-C, SIGTERM and `medfl server stop` stop it; what was done stays in the run folder, and
    `--resume` continues it.
    """
    loaded = load_study(study)
    from medfl.deployment.coordinator.server_folder import ServerFolder

    server = ServerFolder(folder)
    is_child = os.environ.pop(DETACHED, "") != ""
    if not is_child:
        _announce(loaded, server, out=out)
    server.require_running()
    server.require_no_run_in(out)
    if detach:
        arguments = [*map(str, ("server", "run", folder, study, "--out", out))]
        flags = [("--resume", resume), ("--require-all", require_all)]
        _start_detached([*arguments, *(name for name, wanted in flags if wanted)], server, folder)
        return
    _run_here(
        loaded,
        server,
        out=out,
        resume=resume,
        require_all=require_all,
        is_child=is_child,
        command=shlex.join(["medfl", "server", "run", str(folder), str(study), "--out", str(out)]),
    )


def _announce(study: StudyConfig, server: ServerFolder, *, out: Path) -> None:
    """Before the libraries are loaded, which takes seconds."""
    from medfl.deployment.coordinator.run_book import named

    admitted = ", ".join(server.sites()) or "nobody"
    needed = study.aggregation.min_sites
    typer.echo(
        f"Study {study.id}: {study.training.rounds} rounds with at least {needed} of the admitted "
        f"hospitals ({admitted}), in {out}",
        err=True,
    )
    beside = named(server.book.under_way())
    if beside:
        typer.echo(
            f"Beside {beside}: a hospital works on one message at a time, in order of arrival.",
            err=True,
        )


def _run_here(
    study: StudyConfig,
    server: ServerFolder,
    *,
    out: Path,
    resume: bool,
    require_all: bool,
    is_child: bool,
    command: str,
) -> None:
    from medfl.deployment.coordinator.deployed_study import run_deployed_study
    from medfl.deployment.coordinator.run_book import RunStopped
    from medfl.protocol.flower_log import quiet_flower

    quiet_flower()
    terminal = Console(stderr=True)
    terminal.soft_wrap = not terminal.is_terminal
    logs: list[Console] = []
    with LiveProgress(terminal) as live:
        progress = Together(live)

        def begun(record: RunRecord) -> None:
            log = log_console(server.book.log(record))
            how = "goes on" if resume else "begins"
            log.print(f"{record.run} {how} in {record.out}", highlight=False, markup=False)
            progress.shown.append(LiveProgress(log))
            if is_child:
                progress.shown.remove(live)
                _write_to(server.book.log(record))
            else:
                logs.append(log)
                terminal.print(f"Run {record.run}", highlight=False, markup=False)

        try:
            summary = run_deployed_study(
                study,
                folder=server,
                out=out,
                resume=resume,
                require_all=require_all,
                detached=is_child,
                on_begun=begun,
                progress=progress,
                command=command,
            )
        except BaseException as error:
            for log in logs:  # where this process's errors go elsewhere
                told = f"error: {error}" if isinstance(error, MedflError | OSError) else "stopped"
                log.print(told, highlight=False, markup=False)
            if not isinstance(error, RunStopped):
                raise
            raise SystemExit(STOPPED) from None
    print_summary(summary)
    typer.echo(f"Run folder: {out}")
    typer.echo(f"Report: {out / 'report.html'}")


def _write_to(log: Path) -> None:
    """Let what this process says, a traceback too, go to a log; who waited at its pipe goes on."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def _start_detached(arguments: list[str], server: ServerFolder, folder: Path) -> None:
    """Start this command again without a terminal, and wait until its run has begun."""
    now = datetime.now(UTC).replace(microsecond=0)
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "medfl", *arguments],
        env={**os.environ, DETACHED: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        for line in child.stdout or ():
            typer.echo(line, nl=False, err=True)
    except BaseException:  # a run of which nobody knows is none
        child.terminate()
        raise
    records = [record for record in server.book.records() if record.process == child.pid]
    if not records or records[-1].began < now:  # it has said why
        raise SystemExit(child.wait() or 1)
    name = records[-1].run
    typer.echo(f"Run {name} goes on without this terminal.")
    typer.echo(f"Progress: medfl server logs {folder} {name} --follow")
    typer.echo(f"Stop it: medfl server stop {folder} {name}")
