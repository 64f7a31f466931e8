"""`write_report`: one offline HTML page about a run, for people who decide and people who check.

Plain words come first and the technical statement after them. The page has no script and loads
nothing: figures are embedded, and everything that came from a file is escaped.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import ReportError
from medfl.reporting import collusion, privacy_tables, utility_tables, wording
from medfl.reporting.audit_table import audit_table
from medfl.reporting.estimates import in_region
from medfl.reporting.figures import FigureFile, draw_figures
from medfl.reporting.pages import page_environment
from medfl.runs.audit_records import PICTURE
from medfl.runs.records import Region, Variant
from medfl.runs.results import RunResults, read_run


@dataclass(frozen=True, kw_only=True)
class Image:
    """An embedded figure."""

    source: str
    alt: str


def write_report(folder: str | Path) -> Path:
    """Make the figures and the report of a run.

    Args:
        folder: A run folder as the federation wrote it.

    Returns:
        The path of `report.html`; the figures are beside it under `figures`.

    Raises:
        ReportError: If the run folder is incomplete, damaged or contradictory, or is read-only.
    """
    folder = Path(folder)
    run = read_run(folder)
    path = folder / "report.html"
    try:
        figures = draw_figures(run)
        if run.audit is not None:
            figures["inversion"] = FigureFile(
                path=folder / PICTURE,
                alt="One synthetic patient, and what an update betrays of them without and with "
                "noise.",
            )
        page = render(run, {name: _embedded(figure) for name, figure in figures.items()})
        write_atomically(path, page.encode())  # a reader never sees half a page
    except OSError as error:
        raise ReportError(f"{folder}: expected a writable folder, found: {error}") from None
    return path


def render(run: RunResults, images: dict[str, Image]) -> str:
    """The page as text.

    Args:
        run: Results.
        images: Embedded figures by the names of `draw_figures`.
    """
    environment = page_environment()
    shown = (
        wording.at_most,
        wording.counted,
        wording.day,
        wording.difference_estimate,
        wording.listing,
        wording.percent_at_most,
        wording.plain,
        wording.power,
        wording.schedule,
    )
    environment.filters |= {function.__name__: function for function in shown}
    return environment.get_template("report.html.j2").render(
        run=run,
        loss=run.largest_loss,
        guess=privacy_tables.right_guesses(run),
        images=images,
        privacy=privacy_tables,
        collusion=collusion,
        audited=audit_table(run.audit) if run.audit is not None else None,
        utility=utility_tables,
        modalities=[wording.MODALITY_NAMES[name] for name in run.study.input.modalities],
        region_names=wording.REGION_NAMES,
        arguments=json.dumps(run.study.network.arguments, sort_keys=True),
        missed=_missed_updates(run),
        headline=_headline(run),
    )


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The utility of the final federated model in one region, and how it compares."""

    region: str
    score: str
    interval: str
    patients: int
    comparisons: tuple[str, ...]


def _headline(run: RunResults) -> Headline | None:
    regions = run.study.input.regions
    region: Region = "WT" if "WT" in regions else regions[0]
    found = in_region(run.scores_of("federated"), region, measure="dice", statistic="mean")
    if found is None:
        return None
    phrases: dict[Variant, str] = {
        "non-private": "the same training without noise",
        "local-only": "models that each site trains alone with the same noise",
        "alone": "what each site makes of the starting model alone, without noise, and keeps",
        "adapted": "what each site makes of the federated model at home, and keeps",
        "pooled": "ordinary training on all patients in one place",
        "initial-only": "the starting model",
        "threshold": "a simple brightness threshold",
    }
    return Headline(
        region=wording.REGION_NAMES[region].lower(),
        score=wording.dice(found.value),
        interval=f"{wording.dice(found.low)} to {wording.dice(found.high)}",
        patients=found.patients,
        comparisons=tuple(
            _comparison(run, variant, region, phrase)
            for variant, phrase in phrases.items()
            if variant in run.variants
        ),
    )


def _comparison(run: RunResults, variant: Variant, region: Region, phrase: str) -> str:
    """A verdict only where the interval allows one."""
    scores = run.scores_of(variant)
    reached = in_region(scores, region, measure="dice", statistic="mean")
    gap = utility_tables.difference(run, variant, region)
    if reached is None or gap is None:
        return f"{phrase}: not scored on the same patients"
    if gap.low <= 0 <= gap.high:
        verdict = "no clear difference"
    else:
        verdict = "higher" if gap.value < 0 else "lower"
    return f"{phrase}: {wording.dice(reached.value)} ({verdict})"


def _missed_updates(run: RunResults) -> list[str]:
    return [
        f"{name} in round {row.round} ({at.outcome}{': ' + at.code if at.code else ''})"
        for row in run.rounds
        for name, at in row.sites.items()
        if at.outcome != "admitted"
    ]


def _embedded(figure: FigureFile) -> Image:
    encoded = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    return Image(source=f"data:image/png;base64,{encoded}", alt=figure.alt)
