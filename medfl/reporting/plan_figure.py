"""The picture of a plan: what each site's patients will have spent, and who could learn more.

It is drawn from plain values, before there is a run folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from medfl.durable import written_aside
from medfl.reporting import han_font, wording
from medfl.reporting.figures import COLOURS, LIMIT, MUTED, STYLE, WIDTH

_COLUMNS = 4
_NARROWEST = 5.2  # inches, for the legend
_ROW = 2.8  # inches
_HEADROOM = 1.18  # for the label above the highest line
_STEEP = 8.0  # times the lowest epsilon, from where on an axis is logarithmic
_LOSS: dict[str, Any] = {"color": COLOURS["federated"], "linewidth": 2.2}
_BUDGET: dict[str, Any] = {"color": LIMIT, "linewidth": 1.5, "linestyle": (0, (5, 3))}
_MODES = {"local": MUTED, "secure": COLOURS["federated"]}
_TARGET: dict[str, Any] = {"color": MUTED, "linewidth": 1.5, "linestyle": (0, (1, 2))}


@dataclass(frozen=True, kw_only=True)
class PlannedLoss:
    """What a study will cost one site, round by round.

    Attributes:
        site: Name of the site.
        patients: Its declared patients.
        losses: Lifetime epsilon after each round, by round ascending; 0 is before the study.
        budget: The site's lifetime budget.
    """

    site: str
    patients: int
    losses: Mapping[int, float]
    budget: float


@dataclass(frozen=True, kw_only=True)
class CollusionCurve:
    """What a study promises in one trust mode if sites side with the server.

    Attributes:
        trust: ``local`` or ``secure``.
        of_study: Whether it is the study's own mode.
        epsilons: Of the site with the weakest promise, by number of colluding sites, ascending.
    """

    trust: str
    of_study: bool
    epsilons: Mapping[int, float]


def draw_plan(
    sites: Sequence[PlannedLoss],
    *,
    study: str,
    target: float,
    path: Path,
    collusion: Sequence[CollusionCurve] = (),
) -> None:
    """Draw one panel a site, on common axes: sites of equal cost would hide each other's lines.

    Args:
        sites: At least one.
        study: Name of the study.
        target: Epsilon that the study may cost.
        path: The PNG to write.
        collusion: Of each trust mode, for a panel below; none for no such panel.

    Raises:
        OSError: If the file cannot be written.
    """
    han_font.make_known()
    columns = min(_COLUMNS, len(sites))
    rows = math.ceil(len(sites) / columns)
    highest = max(target, *(site.budget for site in sites))
    with mpl.rc_context(STYLE):
        height = 0.9 + _ROW * (rows + bool(collusion))
        size = (max(WIDTH * columns / _COLUMNS, _NARROWEST), height)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(
            f"Planned privacy loss of {wording.shortened(study, length=40)}",
            x=0.01,
            ha="left",
            fontsize=12,
        )
        spec = figure.add_gridspec(rows + bool(collusion), columns)
        panels: list[Axes] = []
        for number, site in enumerate(sites):
            first = panels[0] if panels else None
            panel = figure.add_subplot(spec[divmod(number, columns)], sharey=first)
            if number % columns:
                panel.tick_params(labelleft=False)
            else:
                panel.set_ylabel("Lifetime epsilon")
            _draw_site(panel, site, target=target)
            panels.append(panel)
        panels[0].set_ylim(0, _HEADROOM * highest)
        if collusion:
            _draw_collusion(figure.add_subplot(spec[rows, :]), collusion)
        figure.legend(
            [Line2D([], [], **style) for style in (_LOSS, _BUDGET, _TARGET)],
            ["lifetime epsilon", "site's budget", f"study's target, {wording.plain(target)}"],
            loc="outside lower left",
            ncols=3,
        )
        with written_aside(path) as draft:
            figure.savefig(draft, format="png", bbox_inches="tight", pad_inches=0.12)


def _draw_site(panel: Axes, site: PlannedLoss, *, target: float) -> None:
    panel.axhline(target, **_TARGET)
    panel.axhline(site.budget, **_BUDGET)
    rounds, epsilons = list(site.losses), list(site.losses.values())
    panel.fill_between(rounds, epsilons, color=_LOSS["color"], alpha=0.12, linewidth=0)
    panel.plot(rounds, epsilons, **_LOSS)
    panel.plot(rounds[-1:], epsilons[-1:], color=_LOSS["color"], marker="o", markersize=5)
    panel.annotate(
        f"budget {wording.plain(site.budget)}",
        (0.02, site.budget),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        color=LIMIT,
        fontsize=9,
    )
    panel.annotate(
        wording.at_most(epsilons[-1]),
        (rounds[-1], min(epsilons[-1], site.budget)),
        xytext=(3, 6),
        textcoords="offset points",
        ha="right",
        color=_LOSS["color"],
        fontweight="bold",
    )
    panel.set_title(f"{wording.shortened(site.site)}\n{wording.counted(site.patients, 'patient')}")
    panel.set_xlabel("Round")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _draw_collusion(panel: Axes, curves: Sequence[CollusionCurve]) -> None:
    """Epsilon against the number of sites that side with the server, one labelled line a mode."""
    values = [epsilon for curve in curves for epsilon in curve.epsilons.values()]
    finite = [value for value in values if math.isfinite(value)]
    for curve in curves:
        counts, epsilons = list(curve.epsilons), list(curve.epsilons.values())
        colour = _MODES[curve.trust]
        panel.plot(counts, epsilons, color=colour, linewidth=2.2, marker="o", markersize=5)
        ends = dict.fromkeys(map(wording.at_most, (epsilons[0], epsilons[-1])))
        panel.annotate(
            f"{curve.trust}, {'as in the study' if curve.of_study else 'instead'}: "
            f"{' to '.join(ends)}",
            (counts[-1], epsilons[-1]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="right",
            color=colour,
            fontweight="bold",
        )
    if finite and max(finite) > _STEEP * min(finite) > 0:
        panel.set_yscale("log")
        panel.set_ylim(min(finite) / 1.5, 2.5 * max(finite))
        panel.yaxis.set_major_formatter(lambda value, _: wording.plain(value))
        panel.yaxis.set_minor_formatter(NullFormatter())
    elif finite:
        panel.set_ylim(0, 1.25 * max(finite) or 1.0)
    panel.set_title("Weakest promise of a site, by trust mode")
    panel.set_xlabel("Other sites that side with the server")
    panel.set_ylabel("Epsilon of the study")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
