"""Commands around a study: plan, simulate, report, documents."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from medfl.cli import study_grid
from medfl.cli.jobs import default_jobs
from medfl.cli.plan import SiteFiles, StudyFile, plan
from medfl.cli.summary import print_summary
from medfl.config import load_site, load_study

# The libraries behind the commands take seconds to import: each command imports what it needs after
# it has read the files, so that --help and a refused file answer at once.


RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A finished run folder.")]
ReportLanguage = Annotated[
    Literal["en", "zh"],
    typer.Option("--language", help="en for English, zh for Chinese in simplified characters."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(plan)
    app.command()(simulate)
    app.command()(report)
    app.command()(documents)
    study_grid.register(app)


def simulate(
    study: StudyFile,
    sites: SiteFiles,
    out: Annotated[
        Path, typer.Option("--out", help="The run folder: new or empty, unless --resume.")
    ] = Path("runs/latest"),
    engine: Annotated[
        Literal["inprocess", "ray"],
        typer.Option(help="ray is Flower's simulation runtime (extra 'sim')."),
    ] = "inprocess",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Sites that work side by side without Ray, each in a process of one thread; the "
            "results are the same bits. Without it: one for each core, and one alone for a GPU.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
) -> None:
    """Run a whole study on this machine, and write a run folder with its report.

    The same server and site code as in a deployment: every site checks the proposal against its own
    policy, charges its own ledger before each round, and adds its noise, or its share of a sum's.
    """
    loaded, files = load_study(study), [load_site(path) for path in sites]
    from medfl.cli.live import LiveProgress
    from medfl.reporting.report import write_report
    from medfl.study.run import run_study

    console = Console(stderr=True)
    with LiveProgress(console) as progress:
        summary = run_study(
            loaded,
            files,
            out=out,
            engine=engine,
            jobs=default_jobs(files, engine=engine) if jobs is None else jobs,
            resume=resume,
            progress=progress,
            command=shlex.join(
                ["medfl", "simulate", *map(str, [study, *sites]), "--out", str(out)]
            ),
        )
        progress.phase("report")
        page = write_report(out)
    print_summary(summary)
    typer.echo(f"Run folder: {out}")
    typer.echo(f"Report: {page}")


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="A finished run, or a grid of `medfl study run`."),
    ],
    language: ReportLanguage = "en",
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Also print it to report.pdf (extra 'pdf').")
    ] = False,
) -> None:
    """Write figures and report.html of a finished run again, in English or Chinese.

    Only the run folder is read, and of a grid only its table: no image, no ledger and no site file
    is needed, so that it may be done on another machine.
    """
    from medfl.reporting.grid_report import is_grid, write_grid_report
    from medfl.reporting.pdf import write_pdf
    from medfl.reporting.report import write_report

    write = write_grid_report if is_grid(run_dir) else write_report
    page = write(run_dir, language=language)
    typer.echo(f"Report: {page}")
    if pdf:
        typer.echo(f"PDF: {write_pdf(page)}")


def documents(
    run_dir: RunFolder,
    language: ReportLanguage = "en",
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print the pages (extra 'pdf').")] = False,
    crate: Annotated[
        bool,
        typer.Option("--crate", help="Also describe the folder as an RO-Crate (extra 'crate')."),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Write anew what is there already, and lose what was written into it.",
        ),
    ] = False,
) -> None:
    """Write the documents of a finished run for a data-protection officer and for the public.

    An annex to a data protection impact assessment, with what the run shows filled in and a mark
    wherever a person has to write; a public summary, and a draft entry for the registry of
    deployments, which name no hospital and no size. Files that are there already may have been
    completed: they are kept. Only the run folder is read.
    """
    from medfl.reporting.governance.write import write_documents
    from medfl.reporting.pdf import write_pdf

    written = write_documents(run_dir, language=language, replace=replace)
    for path in written.made:
        typer.echo(f"Written: {path}")
    for path in written.kept:
        typer.echo(f"Kept: {path} (it was there; --replace writes it anew)")
    if pdf:
        for page in written.pages:
            typer.echo(f"PDF: {write_pdf(page)}")
    if crate:
        from medfl.reporting.governance.crate import write_crate

        typer.echo(f"RO-Crate: {write_crate(run_dir)}")
