"""`write_report`: one offline HTML page about a run, for people who decide and people who check.

Plain words come first and the technical statement after them. The page has no script and loads
nothing: figures are embedded, and everything that came from a file is escaped.
"""

from __future__ import annotations

import json
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import ReportError
from medfl.reporting import collusion, privacy_tables, utility_tables, wording
from medfl.reporting.audit_table import audit_table
from medfl.reporting.figures import FigureFile, draw_figures
from medfl.reporting.headline import headline, least_gain
from medfl.reporting.missed import absences, missed_updates
from medfl.reporting.pages import Image, embedded, texted_environment, with_font
from medfl.reporting.texts import ENGLISH, Language, Texts
from medfl.reporting.unfound import unfound_notes
from medfl.reporting.uses_table import uses_table
from medfl.runs.audit_records import PICTURE
from medfl.runs.results import RunResults, read_run


def write_report(folder: str | Path, *, language: Language = "en") -> Path:
    """Make the figures and the report of a run.

    Args:
        folder: A run folder as the federation wrote it.
        language: ``en`` for English, ``zh`` for Chinese in simplified characters.

    Returns:
        The path of `report.html`; the figures are beside it under `figures`.

    Raises:
        ReportError: If the run folder is incomplete, damaged or contradictory, or is read-only.
    """
    folder, texts = Path(folder), Texts(language)
    run = read_run(folder)
    path = folder / "report.html"
    try:
        figures = draw_figures(run, texts)
        if run.audit is not None:
            figures["inversion"] = FigureFile(
                path=folder / PICTURE, alt=texts("figure.inversion.alt")
            )
        page = render(run, {name: embedded(figure) for name, figure in figures.items()}, texts)
        write_atomically(path, page.encode())  # a reader never sees half a page
    except OSError as error:
        raise ReportError(f"{folder}: expected a writable folder, found: {error}") from None
    return path


def render(run: RunResults, images: dict[str, Image], texts: Texts = ENGLISH) -> str:
    """The page as text.

    Args:
        run: Results.
        images: Embedded figures by the names of `draw_figures`.
        texts: Of the reader's language.
    """
    template, names = (
        texted_environment(texts).get_template("report.html.j2"),
        _names(run, images, texts),
    )
    return with_font(lambda font: template.render(names, font=font))


def _names(run: RunResults, images: dict[str, Image], texts: Texts) -> dict[str, object]:
    """Everything that the template names."""
    spacing = run.study.input.spacing
    return {
        "tag": texts.tag,
        "texts": texts,
        "run": run,
        "images": images,
        "loss": run.largest_loss,
        "guess": wording.percent_at_most(privacy_tables.right_guesses(run), texts),
        "coin": wording.percent_at_most(0.5, texts),
        "privacy": privacy_tables,
        "collusion": collusion,
        "uses": uses_table(run, texts),
        "audited": audit_table(run.audit, texts) if run.audit is not None else None,
        "utility": utility_tables,
        "modality_names": [
            wording.modality_name(name, texts) for name in run.study.input.modalities
        ],
        "spacing": "" if spacing == "native" else " × ".join(map(wording.plain, spacing)),
        "schedule": lambda value: wording.schedule(value, texts),
        "weights": ", ".join(f"{site.name} {wording.plain(site.weight)}" for site in run.sites),
        "groups": "; ".join(texts.listing(group.sites) for group in run.federation.overlaps),
        "arguments": json.dumps(run.study.network.arguments, sort_keys=True),
        "missed": "; ".join(missed_updates(run, texts)),
        "absent": absences(run, texts),
        "unfound": unfound_notes(run, texts),
        "headline": headline(run, texts),
        "least": least_gain(run, texts),
    }
