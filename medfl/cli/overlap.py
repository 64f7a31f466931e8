"""Commands by which sites find out whether they share patients, without revealing who they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.config import load_site

if TYPE_CHECKING:
    from medfl.privacy.linkage import Overlap


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Find out whether sites share patients, without names."
    )
    group.command("key")(key)
    group.command("tokens")(tokens)
    group.command("compare")(compare)
    app.add_typer(group, name="overlap")


def key(out: Annotated[Path, typer.Argument(metavar="OUT", help="A new file.")]) -> None:
    """Make the study key that the sites share among themselves.

    Anyone who has it and a token file can test guesses of identifiers: give it to the other sites
    only, never to the server, and delete it after the check.
    """
    from medfl.privacy.linkage import create_key

    create_key(out)
    typer.echo(f"Study key: {out} (for the sites only, never for the server)")


def tokens(
    site: Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file.")],
    study_key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The study key.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new JSON file.")],
    identifiers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Columns patient,identifier: what both sites call a patient, such as a national "
            "number. Without it the patients' names are used.",
        ),
    ] = None,
) -> None:
    """Turn a site's patients into tokens that only another site can compare with its own.

    Case, spaces and punctuation of identifiers do not matter: only letters and digits count.
    """
    from medfl.data.layouts.survey import read_cohort
    from medfl.privacy.linkage import make_tokens, read_identifiers, read_key, write_tokens

    config = load_site(site)
    made = make_tokens(
        site=config.name,
        key=read_key(study_key),
        identifiers=None if identifiers is None else read_identifiers(identifiers),
        patients=[patient.patient_id for patient in read_cohort(config.data).patients],
    )
    write_tokens(out, made)
    typer.echo(f"Tokens: {out} ({len(made.tokens)} patients; for the other sites only)")


def compare(
    files: Annotated[
        list[Path], typer.Argument(metavar="TOKENS.json...", help="Token files of the sites.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Count the patients that each pair of sites shares, and say what the study file must declare.

    Patients who have different identifiers at two sites are not found.
    """
    from medfl.privacy.linkage import compare, read_tokens

    found = compare([read_tokens(path) for path in files])
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else _text(found))


def _text(found: Overlap) -> str:
    lines = [
        f"{' and '.join(pair.sites)}: {pair.patients} shared "
        f"{'patient' if pair.patients == 1 else 'patients'}"
        for pair in found.pairs
    ]
    if not found.groups:
        return "\n".join(
            [*lines, "Nothing to declare, provided that the sites use the same identifiers."]
        )
    lines += ["For the study file:", ""]
    for group in found.groups:
        lines += ["[[overlap]]", f"sites = {json.dumps(group)}", ""]
    return "\n".join(lines[:-1])
