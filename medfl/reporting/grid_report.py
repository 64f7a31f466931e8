"""`write_grid_report`: one offline HTML page about a grid of studies, in the look of a run's.

It is made from the table and `grid.json`: the runs may lie elsewhere, or be gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medfl.durable import write_atomically
from medfl.errors import ReportError
from medfl.reporting import grid_tables, grid_words, wording
from medfl.reporting.estimates import Estimate
from medfl.reporting.grid_aggregates import write_aggregates
from medfl.reporting.grid_figures import draw_grid_figures
from medfl.reporting.grid_scores import GridScores, Setting
from medfl.reporting.pages import Image, embedded, texted_environment, with_font
from medfl.reporting.texts import ENGLISH, Language, Texts
from medfl.runs.grid_records import GRID, GridRecord
from medfl.runs.grid_table import TABLE, read_table
from medfl.runs.records import Region
from medfl.runs.results import Guarantee

_WEAKEST: tuple[Guarantee, ...] = ("none", "overstated", "simulated", "given")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the page leads with: a sentence, and the sentences below it.

    Attributes:
        gains: One a setting of the study; empty where joining was not compared.
        pays: False where the interval of what joining brings does not lie above zero.
    """

    title: str
    gains: tuple[str, ...]
    pays: bool


def is_grid(folder: Path) -> bool:
    """Whether a folder is that of a grid, finished or not."""
    return (folder / GRID.name).exists() or (folder / TABLE).exists() or (folder / "cells").is_dir()


def write_grid_report(folder: str | Path, *, language: Language = "en") -> Path:
    """Make the small table, the figures and the report of a grid.

    Args:
        folder: As `medfl study run` left it; its `cells` are not read.
        language: ``en`` for English, ``zh`` for Chinese in simplified characters.

    Returns:
        The path of `report.html`; the figures are beside it under `figures`.

    Raises:
        ReportError: If the table is missing or damaged, or the folder is read-only.
    """
    folder, texts = Path(folder), Texts(language)
    if not (folder / GRID.name).exists():
        raise ReportError(
            f"{folder}: expected a finished grid of studies, found no {GRID.name}. Go on with it "
            "by the same `medfl study run` that began it."
        )
    record, scores = GRID.read(folder), GridScores(read_table(folder))
    if not scores.settings:
        raise ReportError(f"{folder / TABLE}: expected scores of models, found none")
    path = folder / "report.html"
    try:
        write_aggregates(scores, folder=folder)
        figures = draw_grid_figures(scores, folder=folder, texts=texts)
        images = {name: embedded(figure) for name, figure in figures.items()}
        write_atomically(path, render_grid(record, scores, images, texts).encode())
    except OSError as error:
        raise ReportError(f"{folder}: expected a writable folder, found: {error}") from None
    return path


def render_grid(
    record: GridRecord, scores: GridScores, images: dict[str, Image], texts: Texts = ENGLISH
) -> str:
    """The page as text.

    Args:
        record: What the runs have in common.
        scores: The table.
        images: Embedded figures by the names of `draw_grid_figures`.
        texts: Of the reader's language.
    """
    template = texted_environment(texts).get_template("study_grid.html.j2")
    guarantees = {cell.guarantee for cell in record.cells}
    guarantee, said = next(each for each in _WEAKEST if each in guarantees), verdict(scores, texts)
    names = {
        "tag": texts.tag,
        "texts": texts,
        "record": record,
        "images": images,
        "guarantee": guarantee,
        # Green is for a promise that is kept and a gain that is shown.
        "tone": guarantee if said.pays or guarantee != "given" else "simulated",
        "verdict": said,
        "tables": grid_tables,
        "scores": scores,
        "held_out": len(scores.patients),
        "epsilons": ", ".join(wording.plain(epsilon) for epsilon in record.epsilons),
        "seeds": ", ".join(map(str, record.seeds)),
        "trusts": texts.listing([grid_words.trust_name(trust, texts) for trust in record.trust]),
        "unfound": [
            wording.region_name(region, texts).lower()
            for region in scores.regions
            if region not in scores.found_regions
        ],
        "schedule": lambda value: wording.schedule(value, texts),
    }
    return with_font(lambda font: template.render(names, font=font))


def verdict(scores: GridScores, texts: Texts) -> Verdict:
    """What joining brought in the study as it is, at its largest epsilon first."""
    region = _region(scores)
    settings = [each for each in scores.settings if each.variant == scores.variants[0]]
    told = [_gain(scores, setting, region, texts) for setting in settings]
    name = wording.region_name(region, texts).lower()
    setting = grid_words.setting_name(settings[0], scores, texts)
    first = scores.gain(settings[0], region)
    if first is not None:
        gain = wording.difference_estimate(first, texts)
        title = texts(_verdict(first), region=name, gain=gain, setting=setting)
    else:
        score = scores.mean("federated", settings[0], region)
        shown = "–" if score is None else wording.dice_estimate(score, texts)
        title = texts("studies.verdict.score", region=name, score=shown, setting=setting)
    return Verdict(
        title=title,
        gains=tuple(line for line in told if line),
        pays=first is None or first.low > 0,
    )


def _verdict(gain: Estimate) -> str:
    if gain.low <= 0 <= gain.high:
        return "studies.verdict.unclear"
    return "studies.verdict.gains" if gain.value > 0 else "studies.verdict.loses"


def _gain(scores: GridScores, setting: Setting, region: Region, texts: Texts) -> str:
    gain, least = scores.gain(setting, region), scores.least_gain(setting, region)
    if gain is None or least is None:
        return ""
    return texts(
        "studies.gains.at",
        setting=grid_words.setting_name(setting, scores, texts),
        gain=wording.difference_estimate(gain, texts),
        site=least[0],
        least=wording.difference_estimate(least[1], texts),
    )


def _region(scores: GridScores) -> Region:
    """The whole tumour where it is segmented, and else the first region that anything finds."""
    regions = scores.found_regions or scores.regions
    return "WT" if "WT" in regions else regions[0]
