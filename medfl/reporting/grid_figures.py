"""Figures of a grid of studies, from its table alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medfl.reporting import grid_words, wording
from medfl.reporting.estimates import Estimate
from medfl.reporting.figures import INK, LIMIT, MUTED, WIDTH, FigureFile, write_figures
from medfl.reporting.grid_scores import GridScores, Setting
from medfl.reporting.texts import ENGLISH, Texts

# Of Okabe and Ito, as in the report of a run; every line also has a marker of its own.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c96a0")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LINES = ("solid", "dashed", "dotted", "dashdot")
_APART = 0.08  # of the distance between epsilons, so that no interval hides another one
_ROW = 0.14  # inches of one hospital in one setting


def draw_grid_figures(
    scores: GridScores, *, folder: Path, texts: Texts = ENGLISH
) -> dict[str, FigureFile]:
    """Draw what the table has data for.

    Args:
        scores: The table; the files go to `figures` in `folder`.
        folder: Of the grid.
        texts: Of the reader's language.

    Returns:
        Figures by name: ``dice_by_epsilon``, ``grid_gains``, ``dice_by_hospital``.
    """
    found = scores.found_regions
    compared = bool(found) and {"alone", "adapted"} <= set(scores.models)
    drawings = {
        "grid_gains": (gains, "figure.grid_gains.alt", compared),
        "dice_by_epsilon": (dice_by_epsilon, "figure.grid_epsilon.alt", bool(found)),
        "dice_by_hospital": (dice_by_hospital, "figure.grid_sites.alt", bool(found)),
    }
    return write_figures(scores, drawings, folder=folder, texts=texts)


def dice_by_epsilon(scores: GridScores, texts: Texts = ENGLISH) -> Figure:
    """A panel a region: the federated model against epsilon, a line a trust mode and variant."""
    figure, panels = _panels(scores, texts, height=3.9)
    lines = [(variant, trust) for variant in scores.variants for trust in scores.trusts]
    bare = "non-private" in scores.models
    for panel, region in zip(panels, scores.found_regions, strict=True):
        for number, (variant, trust) in enumerate(lines):
            places = [*scores.epsilons, *([None] if bare else [])]
            points = [
                (
                    place + _APART * (number - (len(lines) - 1) / 2),
                    scores.mean(
                        "non-private" if epsilon is None else "federated",
                        Setting(variant=variant, trust=trust, epsilon=epsilon),
                        region,
                    ),
                )
                for place, epsilon in enumerate(places)
            ]
            _line(
                panel,
                points,
                colour=_COLOURS[scores.trusts.index(trust) % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                style=_LINES[scores.variants.index(variant) % len(_LINES)],
                label=grid_words.line_name(variant, trust, scores, texts),
            )
        for number, variant in enumerate(scores.variants):
            start = scores.mean("initial-only", scores.settings[0].of(variant), region)
            if start is not None:
                panel.axhline(
                    start.value, color=MUTED, linestyle=_LINES[number % len(_LINES)], linewidth=1
                )
        labels = [wording.plain(epsilon) for epsilon in scores.epsilons]
        labels += [texts("studies.no_noise")] if bare else []
        panel.set_xticks(range(len(labels)), labels)
        panel.set_xlim(-0.5, len(labels) - 0.5)
        panel.set_xlabel(texts("figure.grid_epsilon.axis"))
    panels[0].set_ylabel(texts("figure.dice.axis"))
    _legend(figure, panels[0])
    return figure


def gains(scores: GridScores, texts: Texts = ENGLISH) -> Figure:
    """A panel a region: what joining brings at each hospital, a mark a setting of the study."""
    settings = _of_base(scores)
    rows = (*scores.sites, "")
    height = 1.4 + len(rows) * max(0.42, _ROW * len(settings))
    figure, panels = _panels(scores, texts, height=height)
    for panel, region in zip(panels, scores.found_regions, strict=True):
        panel.axvline(0, color=MUTED, linewidth=1)
        for number, setting in enumerate(settings):
            shift = 0.7 * ((number + 0.5) / len(settings) - 0.5)
            style: dict[str, Any] = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
            }
            label = grid_words.setting_name(setting, scores, texts)
            for row, site in enumerate(rows):
                found = scores.gain(setting, region, site=site)
                if found is not None:
                    panel.errorbar(
                        found.value,
                        row + shift,
                        xerr=_reach(found),
                        label=label,
                        capsize=3,
                        linestyle="none",
                        **style,
                    )
                    label = ""
        names = [wording.shortened(site) if site else texts("table.all_sites") for site in rows]
        panel.set_yticks(range(len(rows)), names)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.grid(axis="x")
        panel.set_xlabel(texts("figure.grid_gains.axis"))
    _legend(figure, panels[0])
    return figure


def dice_by_hospital(scores: GridScores, texts: Texts = ENGLISH) -> Figure:
    """A panel a region: the federated model at each hospital, the lowest score with a ring."""
    settings = _of_base(scores)
    figure, panels = _panels(scores, texts, height=3.9)
    for panel, region in zip(panels, scores.found_regions, strict=True):
        for number, setting in enumerate(settings):
            shift = 0.6 * ((number + 0.5) / len(settings) - 0.5)
            points = [
                (place + shift, scores.mean("federated", setting, region, site=site))
                for place, site in enumerate(scores.sites)
            ]
            _line(
                panel,
                points,
                colour=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                style="none",
                label=grid_words.setting_name(setting, scores, texts),
            )
            worst = scores.worst_site("federated", setting, region)
            if worst is not None:
                panel.plot(
                    scores.sites.index(worst[0]) + shift,
                    worst[1].value,
                    marker="o",
                    markersize=14,
                    color="none",
                    markeredgecolor=LIMIT,
                    linestyle="none",
                )
        names = [wording.shortened(site) for site in scores.sites]
        panel.set_xticks(range(len(names)), names)
        panel.set_xlim(-0.6, len(names) - 0.4)
    panels[0].set_ylabel(texts("figure.dice.axis"))
    _legend(figure, panels[0])
    return figure


def _of_base(scores: GridScores) -> tuple[Setting, ...]:
    """The settings of the study as it is; variants stand in the tables."""
    return tuple(each for each in scores.settings if each.variant == scores.variants[0])


def _panels(scores: GridScores, texts: Texts, *, height: float) -> tuple[Figure, list[Axes]]:
    regions = scores.found_regions
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = list(figure.subplots(1, len(regions), sharey=True, squeeze=False).flat)
    for panel, region in zip(panels, regions, strict=True):
        panel.set_title(wording.region_label(region, texts))
    return figure, panels


def _line(
    panel: Axes,
    points: Sequence[tuple[float, Estimate | None]],
    *,
    colour: str,
    marker: str,
    style: str,
    label: str,
) -> None:
    known = [(place, found) for place, found in points if found is not None]
    if known:
        panel.errorbar(
            [place for place, _ in known],
            [found.value for _, found in known],
            yerr=[
                [found.value - found.low for _, found in known],
                [found.high - found.value for _, found in known],
            ],
            color=colour,
            marker=marker,
            linestyle=style,
            capsize=3,
            label=label,
        )


def _reach(found: Estimate) -> list[list[float]]:
    return [[found.value - found.low], [found.high - found.value]]


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if labels:
        columns = min(3, len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, labelcolor=INK)
