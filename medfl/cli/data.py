"""Commands around images: phantom, check and cache."""

from __future__ import annotations

import itertools
import json
import secrets
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medfl.cli.advance import shown_advance
from medfl.cli.numbers import LARGEST_SEED, finite
from medfl.config import load_site, load_study
from medfl.config.site import Purpose
from medfl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medfl.config import SiteConfig
    from medfl.data.cache import TensorCache
    from medfl.data.layouts.detection import Proposal

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")]

_CUSTOM = (
    "Describe them with layout = 'custom' in the site file, for example by the path "
    "{patient}/{session}/T1."
)
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(phantom)
    app.command()(check)
    cache = typer.Typer(no_args_is_help=True, help="Prepared images of a site.")
    cache.command("fill")(fill)
    cache.command("size")(size)
    cache.command("clear")(clear)
    app.add_typer(cache, name="cache")


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    patients: Annotated[
        tuple[int, int, int, int],
        typer.Option(
            min=1,
            max=10**5,
            help="Patients at north, east, south and west; further hospitals repeat these numbers.",
        ),
    ] = (60, 48, 36, 24),
    hospitals: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Number of hospitals; with fewer than four, the first ones."
        ),
    ] = 4,
    purpose: Annotated[
        Purpose,
        typer.Option(
            help="'hospital' writes files for a deployment, with state folders for keys and "
            "ledgers; 'open-data' for simulations."
        ),
    ] = "open-data",
    shape: Annotated[
        tuple[int, int, int],
        typer.Option(min=16, max=1024, help="Voxels: right, anterior, superior."),
    ] = (64, 64, 48),
    spacing: Annotated[
        tuple[float, float, float],
        typer.Option(min=0.1, max=20, callback=finite, help="Millimetres per voxel."),
    ] = (2.8, 2.8, 3.4),
    whole_head: Annotated[bool, typer.Option("--whole-head", help="Keep skull and scalp.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=LARGEST_SEED,
            help="Another seed gives other patients. Default: 7; with --purpose hospital a new "
            "one, since a machine keeps one ledger for the same patients.",
        ),
    ] = None,
) -> None:
    """Write synthetic hospitals with a site file each.

    The patients are made up: brain MRI in four modalities with tumours, in the folder layout of
    BraTS 2021. The hospitals differ in their number of patients, and each has a scanner look of its
    own.
    """
    from medfl.phantom.hospitals import write_hospitals

    if seed is None:
        seed = 7 if purpose == "open-data" else secrets.randbelow(LARGEST_SEED)
    counts = list(itertools.islice(itertools.cycle(patients), hospitals))
    with shown_advance() as advance:
        written = itertools.count(1)
        files = write_hospitals(
            out,
            patients=counts,
            shape=shape,
            spacing=spacing,
            skull_stripped=not whole_head,
            seed=seed,
            purpose=purpose,
            on_patient=lambda: advance("writing patients", next(written), sum(counts)),
        )
    for file in files:
        typer.echo(file)


def check(
    site: Annotated[
        Path, typer.Argument(metavar="SITE.toml", help="The site file; a folder with --detect.")
    ],
    study: Annotated[
        Path | None,
        typer.Option(metavar="STUDY.toml", help="Also try its network on one patient."),
    ] = None,
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Also test the connection to this server.")
    ] = "",
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The authority that signed the server's certificate."),
    ] = None,
    detect: Annotated[
        bool,
        typer.Option("--detect", help="Only propose a site file for the images: layout, labels."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    for_others: Annotated[
        bool,
        typer.Option(
            "--shareable",
            help="Name no patients, files or folders, for somebody who helps the site.",
        ),
    ] = False,
) -> None:
    """Find everything that would stop a site, in one pass, each finding with its fix.

    Checks data, disk, memory, threads, device, state folder, keys and ledger; with --study it does
    a dry run of one patient, which charges nothing because nothing leaves; with --server it checks
    the network. The exit code is 2 if anything prevents training. The findings name patients and
    folders and are meant for this site only; with --shareable patients appear as keyed hashes only,
    and the site's folders as STATE and ROOT.
    """
    if detect:
        _detect((site,) if site.is_dir() else load_site(site).data.roots, as_json=as_json)
        return
    from medfl.preflight.machine import resources, this_machine
    from medfl.preflight.shareable import places_of, shareable
    from medfl.preflight.site import preflight, pseudonym_key

    config = load_site(site)
    if ca is not None and not server:
        raise ConfigError("--ca: expected --server HOST:PORT with it, found none.")
    with shown_advance() as advance:
        findings = preflight(
            config,
            file=site,
            study=study,
            server=server,
            ca=ca,
            on_progress=lambda part, done, total: advance(f"{config.name}: {part}", done, total),
        )
    if for_others:
        findings = shareable(
            findings,
            key=pseudonym_key(config),
            places=places_of(config, study=study, server=server, ca=ca),
        )
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    elif findings:
        table = Table(title=f"{config.name}: {len(findings)} findings")
        for name in ("severity", "where", "expected", "found", "fix"):
            table.add_column(name, overflow="fold")
        for finding in findings:
            where = finding.patient if for_others else finding.name
            cells = (finding.severity, where, finding.rule, finding.value, finding.fix)
            # A bracket in a name is no style.
            table.add_row(*map(escape, cells), style=STYLES[finding.severity])
        Console().print(table)
    else:
        typer.echo(f"{config.name}: nothing found; the site is ready.")
    if not as_json:
        typer.echo(resources(config, machine=this_machine(config.state)))
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(2)


def _detect(roots: Sequence[Path], *, as_json: bool) -> None:
    """Propose how folders are laid out; the exit code is 2 if no layout fits."""
    from medfl.data.layouts.detection import detect
    from medfl.data.layouts.other_formats import not_nifti

    proposals = detect(*(root.resolve() for root in roots))
    if not proposals:
        for root in roots:
            if other := not_nifti(root):
                raise DataError(str(other))
        raise DataError(
            f"{', '.join(map(str, roots))}: expected folders that a known layout describes, found "
            f"none. {_CUSTOM}"
        )
    if as_json:
        typer.echo(json.dumps([asdict(proposal) for proposal in proposals], indent=2))
        return
    # What is printed is a site file: everything said about it goes into comments.
    typer.echo(f"# {', '.join(map(str, roots))}: what it seems to hold, likeliest first.")
    for found in proposals:
        typer.echo(
            textwrap.fill(_described(found), 80, initial_indent="# ", subsequent_indent="#   ")
        )
    file = _site_file(proposals[0])
    if file is None:
        raise DataError(
            f"{', '.join(map(str, roots))}: expected cases that a known layout reads with all of "
            f"their files, found none. {_CUSTOM}"
        )
    typer.echo(file)


def _described(found: Proposal) -> str:
    """A proposal in a sentence."""
    from medfl.reporting.wording import counted

    values = f"; mask values {', '.join(f'{v:g}' for v in found.values)}" if found.values else ""
    alike = f" ({', '.join(found.alike)} reads it alike)" if found.alike else ""
    schemes = f", which fit {', '.join(found.other_schemes)} too" if found.other_schemes else ""
    lacking = f"; {counted(found.incomplete, 'case')} without a mask" if found.incomplete else ""
    return (
        f"{found.surety}: layout {found.layout}{alike}, label_scheme {found.label_scheme}; "
        f"{counted(found.patients, 'patient')}, {counted(found.cases, 'case')} with "
        f"{', '.join(found.modalities)}{lacking}{values}{schemes}. It explains "
        f"{found.explained:.0%} of the folders, with {counted(found.problems, 'problem')}."
    )


def _site_file(found: Proposal) -> str | None:
    """A site file for what was found, with whatever a person has to look at; None if nobody is."""
    from medfl.config.site_template import site_file_for
    from medfl.data.layouts.survey import survey_cohort

    remarks = [f"{found.surety}: layout {found.layout}, label_scheme {found.label_scheme}"]
    if found.surety != "certain":
        remarks.append("EDIT: look at some masks; what their values mean is not beyond doubt")
    if found.other_schemes:
        remarks.append(f"The values fit {', '.join(found.other_schemes)} too")
    if found.incomplete:
        remarks.append(f"{found.incomplete} of {found.cases} cases have no mask and are left out")
    # Where nothing is left out, the folders were walked through for the proposal itself.
    patients = len(survey_cohort(found.data).patients) if found.incomplete else found.patients
    if not patients:
        return None
    return site_file_for(
        found.data, name=Path(found.roots[0]).name, patients=patients, remarks=remarks
    )


def fill(
    site: SiteFile,
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study to prepare for.")],
) -> None:
    """Prepare a site's images for a study, so that the first round does not wait for them.

    Nothing is charged, and nothing leaves the site. Images that are already prepared are left as
    they are. The exit code is 2 if a patient cannot be prepared.
    """
    from medfl.site.filling import fill_cache
    from medfl.site.state import hospital_state

    config = load_site(site)
    with shown_advance() as advance:
        failed = fill_cache(
            hospital_state(config),
            load_study(study),
            on_patient=lambda done, total: advance(f"{config.name}: preparing", done, total),
        )
    for error in failed:
        typer.echo(f"error: {error}", err=True)
    _report_size(config)
    if failed:
        raise typer.Exit(2)


def size(site: SiteFile) -> None:
    """Show how much disk space a site's prepared images take, and how much they may take."""
    _report_size(load_site(site))


def clear(site: SiteFile) -> None:
    """Delete a site's prepared images; they are made again when needed."""
    config = load_site(site)
    typer.echo(f"{config.name}: {_cache(config).clear()} prepared cases deleted")


def _report_size(config: SiteConfig) -> None:
    from medfl.data.cache import RETENTION_DAYS

    typer.echo(
        f"{config.name}: {_cache(config).nbytes / 1e9:.2f} GB of {config.cache_gigabytes:g} GB; "
        f"unread for {RETENTION_DAYS} days, an entry is deleted"
    )


def _cache(config: SiteConfig) -> TensorCache:
    from medfl.data.cache import TensorCache
    from medfl.site.state_folder import CACHE

    return TensorCache(config.state / CACHE)
