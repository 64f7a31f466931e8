"""Figures of a report: one function a figure, each from a run's results to a PNG.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; every mark also
differs in shape or place. Nothing here touches pyplot, so no figure outlives its function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from medfl.durable import written_aside
from medfl.reporting import han_font, wording
from medfl.reporting.estimates import Estimate, Measure, Statistic, in_region
from medfl.reporting.gains_figure import gains_figure
from medfl.reporting.montage import draw_montage
from medfl.reporting.texts import ENGLISH, Texts
from medfl.reporting.unfound import found_regions
from medfl.runs.records import Region, Variant
from medfl.runs.results import RunResults

INK = "#1f2933"
MUTED = "#5b6770"
LIMIT = "#b23b00"
COLOURS: Mapping[Variant, str] = {
    "federated": "#0072b2",
    "non-private": "#009e73",
    "local-only": "#e69f00",
    "alone": "#d55e00",
    "adapted": "#56b4e9",
    "pooled": "#f0e442",
    "initial-only": "#8c96a0",
    "threshold": "#cc79a7",
}
MARKERS: Mapping[Variant, str] = {
    "federated": "o",
    "non-private": "D",
    "local-only": "s",
    "alone": "X",
    "adapted": "P",
    "pooled": "h",
    "initial-only": "^",
    "threshold": "v",
}
STYLE: dict[Any, object] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "font.family": list(han_font.FAMILIES),
    "font.size": 10,
    "grid.color": "#e3e7ea",
    "legend.frameon": False,
    "savefig.dpi": 160,
    "text.color": INK,
    "text.parse_math": False,  # a site's name is text, not a formula
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 9.6  # inches

_MARKED_ROUNDS = 30  # more of them would hide the line
_LEVEL_CHARACTERS = 28  # of the sites' names under one panel, before they overlap
_BAR = 0.18  # of the distance between regions, at most


Draw = Callable[[RunResults, Texts], Figure]
Source = TypeVar("Source")


@dataclass(frozen=True, kw_only=True)
class FigureFile:
    """A figure on disk with its text alternative; the figures' numbers stand in tables."""

    path: Path
    alt: str


def draw_figures(run: RunResults, texts: Texts = ENGLISH) -> dict[str, FigureFile]:
    """Draw every figure that the run has data for.

    Args:
        run: Results; the files go to its folder `figures`.
        texts: Of the reader's language.

    Returns:
        Figures by name: ``epsilon_by_round``, ``gains``, ``dice_by_variant``, ``dice_by_round``,
        ``dice_by_site``, ``hd95_by_variant``, ``montage``.

    Raises:
        ReportError: If the image of a prediction cannot be read.
    """
    scores = run.scores_of("federated")
    regions = found_regions(run)
    scored = any(score.region in regions for score in scores)
    measured = any(score.region in regions and score.hd95_mm is not None for score in scores)
    compared = bool(regions) and {"alone", "adapted"} <= set(run.variants)
    drawings: dict[str, tuple[Draw, str, bool]] = {
        "epsilon_by_round": (epsilon_by_round, "figure.epsilon.alt", True),
        "gains": (gains_figure, "figure.gains.alt", compared),
        "dice_by_variant": (dice_by_variant, "figure.dice_by_variant.alt", scored),
        "dice_by_round": (dice_by_round, "figure.dice_by_round.alt", scored),
        "dice_by_site": (dice_by_site, "figure.dice_by_site.alt", scored),
        "hd95_by_variant": (hd95_by_variant, "figure.hd95_by_variant.alt", measured),
        "montage": (draw_montage, "figure.montage.alt", bool(run.predictions)),
    }
    return write_figures(run, drawings, folder=run.folder, texts=texts)


def write_figures(
    source: Source,
    drawings: Mapping[str, tuple[Callable[[Source, Texts], Figure], str, bool]],
    *,
    folder: Path,
    texts: Texts,
) -> dict[str, FigureFile]:
    """Draw what there is data for, in the style of all pages.

    Args:
        source: What figures are drawn from.
        drawings: By name: what draws it, the key of its text alternative, whether there is data.
        folder: The files go to its folder `figures`.
        texts: Of the reader's language.
    """
    han_font.make_known()
    (folder / "figures").mkdir(exist_ok=True)
    files = {}
    for name, (draw, alt, has_data) in drawings.items():
        if has_data:
            files[name] = FigureFile(path=folder / "figures" / f"{name}.png", alt=texts(alt))
            with mpl.rc_context(STYLE):
                figure = draw(source, texts)
                with written_aside(files[name].path) as draft:
                    figure.savefig(draft, bbox_inches="tight", pad_inches=0.12)
    return files


def epsilon_by_round(run: RunResults, texts: Texts = ENGLISH) -> Figure:
    """One panel a site: the privacy loss so far against rounds, under the site's budget."""
    names = [site.name for site in run.sites if site.name in run.privacy]
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        _draw_loss(panel, run, name, texts)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for row in range(rows):
        panels[row * columns].set_ylabel(texts("figure.loss.axis"))
    # All panels share it, whatever the budget of the site that is drawn last.
    panels[0].set_ylim(0, 1.18 * max(_highest_loss(run, name) for name in names))
    return figure


def _highest_loss(run: RunResults, name: str) -> float:
    """The budget of a site, or what was spent if that is more."""
    losses = [row.sites[name].epsilon for row in run.rounds if name in row.sites]
    return max(run.privacy[name].budget, *filter(math.isfinite, losses), 0.0)


def _draw_loss(panel: Axes, run: RunResults, name: str, texts: Texts) -> None:
    budget = run.privacy[name].budget
    points = [(row.round, row.sites[name]) for row in run.rounds if name in row.sites]
    finite = [(number, at) for number, at in points if math.isfinite(at.epsilon)]
    numbers = [number for number, _ in finite]
    losses = [at.epsilon for _, at in finite]
    panel.axhline(budget, color=LIMIT, linestyle=(0, (5, 3)), linewidth=1.5)
    panel.annotate(
        texts("figure.budget", epsilon=wording.at_least(budget)),
        (0, budget),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        color=LIMIT,
        fontsize=9,
    )
    if finite:
        colour = COLOURS["federated"]
        panel.fill_between(numbers, losses, color=colour, alpha=0.12, linewidth=0)
        marker = "o" if len(numbers) <= _MARKED_ROUNDS else ""
        panel.plot(numbers, losses, color=colour, linewidth=2.2, marker=marker, markersize=3.5)
    else:
        panel.text(0.5, 0.5, texts("figure.no_noise"), transform=panel.transAxes, ha="center")
    missed = [index for index, (_, at) in enumerate(finite) if at.outcome != "admitted"]
    panel.plot(
        [numbers[index] for index in missed],
        [losses[index] for index in missed],
        linestyle="none",
        marker="o",
        markersize=7,
        color="white",
        markeredgecolor=LIMIT,
        markeredgewidth=1.6,
    )
    panel.set(title=wording.shortened(name), xlabel=texts("table.round"))
    panel.set_xlim(run.rounds[0].round - 0.6, run.rounds[-1].round + 0.6)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def dice_by_variant(run: RunResults, texts: Texts = ENGLISH) -> Figure:
    """Bars of mean Dice by region, federated beside its baselines."""
    figure = _bars_by_variant(run, texts, measure="dice", statistic="mean", show=wording.dice)
    figure.axes[0].set(ylabel=texts("figure.dice.axis"), ylim=(0, 1.1))
    return figure


def hd95_by_variant(run: RunResults, texts: Texts = ENGLISH) -> Figure:
    """Bars of the median surface distance by region, federated beside its baselines."""
    figure = _bars_by_variant(
        run, texts, measure="hd95_mm", statistic="median", show=wording.millimetres
    )
    figure.axes[0].set(ylabel=texts("figure.distance.axis"))
    return figure


def _bars_by_variant(
    run: RunResults,
    texts: Texts,
    *,
    measure: Measure,
    statistic: Statistic,
    show: Callable[[float], str],
) -> Figure:
    regions = found_regions(run)
    present = [
        variant
        for variant in run.variants
        if any(getattr(score, measure) is not None for score in run.scores_of(variant))
    ]
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    width = min(0.82 / len(present), _BAR)
    for index, variant in enumerate(present):
        scores = run.scores_of(variant)
        offset = (index - (len(present) - 1) / 2) * width
        for position, region in enumerate(regions):
            found = in_region(scores, region, measure=measure, statistic=statistic)
            if found is not None:
                axes.bar(position + offset, found.value, width * 0.88, color=COLOURS[variant])
                _interval(axes, position + offset, found, color=INK, capsize=3, linewidth=1.2)
                _above(axes, position + offset, found.high, show(found.value))
    axes.set_xticks(
        range(len(regions)), [wording.region_label(region, texts) for region in regions]
    )
    axes.set_xlim(-0.6, len(regions) - 0.4)
    axes.tick_params(axis="x", length=0)
    _legend(figure, run, present, texts, shape="s")
    return figure


def dice_by_round(run: RunResults, texts: Texts = ENGLISH) -> Figure:
    """One panel a region: mean Dice of the federated model by round, baselines as lines."""
    regions = found_regions(run)
    figure, panels = _region_panels(regions, texts)
    for panel, region in zip(panels, regions, strict=True):
        by_round = {
            number: in_region(
                run.scores_of("federated", at=number), region, measure="dice", statistic="mean"
            )
            for number in run.scored_rounds("federated")
        }
        points = [(number, found) for number, found in by_round.items() if found is not None]
        numbers = [number for number, _ in points]
        panel.fill_between(
            numbers,
            [found.low for _, found in points],
            [found.high for _, found in points],
            color=COLOURS["federated"],
            alpha=0.18,
            linewidth=0,
        )
        panel.plot(
            numbers,
            [found.value for _, found in points],
            color=COLOURS["federated"],
            linewidth=2.2,
            marker="o",
            markersize=4.5,
        )
        for variant in run.variants[1:]:
            final = in_region(run.scores_of(variant), region, measure="dice", statistic="mean")
            if final is not None:
                panel.axhline(final.value, color=COLOURS[variant], linestyle="dashed")
        panel.set_xlabel(texts("table.round"))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _legend(figure, run, run.variants, texts, shape="s")
    return figure


def dice_by_site(run: RunResults, texts: Texts = ENGLISH) -> Figure:
    """One panel a region: mean Dice at each site, federated beside its baselines."""
    regions = found_regions(run)
    figure, panels = _region_panels(regions, texts)
    scored = {score.site for score in run.scores}
    names = [site.name for site in run.sites if site.name in scored]
    for panel, region in zip(panels, regions, strict=True):
        for index, variant in enumerate(run.variants):
            scores = run.scores_of(variant)
            offset = 0.7 * ((index + 0.5) / len(run.variants) - 0.5)
            for position, name in enumerate(names):
                found = in_region(scores, region, measure="dice", statistic="mean", site=name)
                if found is not None:
                    style = {"color": COLOURS[variant], "marker": MARKERS[variant]}
                    _interval(panel, position + offset, found, markersize=6, **style)
        labels = [wording.shortened(name) for name in names]
        steep = 60 if len("".join(labels)) > _LEVEL_CHARACTERS else 0
        panel.set_xticks(range(len(names)), labels, rotation=steep)
        panel.set_xlim(-0.6, len(names) - 0.4)
    _legend(figure, run, run.variants, texts)
    return figure


def _interval(axes: Axes, x: float, found: Estimate, **style: Any) -> None:
    error = [[found.value - found.low], [found.high - found.value]]
    axes.errorbar(x, found.value, yerr=error, **style)


def _above(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)


def _region_panels(regions: Sequence[Region], texts: Texts) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = list(figure.subplots(1, len(regions), sharey=True, squeeze=False).flat)
    for panel, region in zip(panels, regions, strict=True):
        panel.set(title=wording.region_label(region, texts), ylim=(0, 1))
    panels[0].set_ylabel(texts("figure.dice.axis"))
    return figure, panels


def _legend(
    figure: Figure,
    run: RunResults,
    variants: Sequence[Variant],
    texts: Texts,
    *,
    shape: str = "",
) -> None:
    names = [
        wording.variant_name(variant, guarantee=run.guarantee, texts=texts) for variant in variants
    ]
    marks = [
        Line2D(
            [],
            [],
            color=COLOURS[variant],
            marker=shape or MARKERS[variant],
            linestyle="none",
            markersize=8,
        )
        for variant in variants
    ]
    figure.legend(marks, names, loc="outside lower center", ncols=len(names), handletextpad=0.1)
