"""The picture of a plan: what each site's patients will have spent after each round.

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
from matplotlib.ticker import MaxNLocator

from medfl.durable import written_aside
from medfl.reporting import wording
from medfl.reporting.figures import COLOURS, LIMIT, MUTED, STYLE, WIDTH

_COLUMNS = 4
_NARROWEST = 5.2  # inches, for the legend
_HEADROOM = 1.18  # for the label above the highest line
_LOSS: dict[str, Any] = {"color": COLOURS["federated"], "linewidth": 2.2}
_BUDGET: dict[str, Any] = {"color": LIMIT, "linewidth": 1.5, "linestyle": (0, (5, 3))}
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


def draw_plan(sites: Sequence[PlannedLoss], *, study: str, target: float, path: Path) -> None:
    """Draw one panel a site, on common axes: sites of equal cost would hide each other's lines.

    Args:
        sites: At least one.
        study: Name of the study.
        target: Epsilon that the study may cost.
        path: The PNG to write.

    Raises:
        OSError: If the file cannot be written.
    """
    columns = min(_COLUMNS, len(sites))
    rows = math.ceil(len(sites) / columns)
    highest = max(target, *(site.budget for site in sites))
    with mpl.rc_context(STYLE):
        size = (max(WIDTH * columns / _COLUMNS, _NARROWEST), 0.9 + 2.8 * rows)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(
            f"Planned privacy loss of {wording.shortened(study, length=40)}",
            x=0.01,
            ha="left",
            fontsize=12,
        )
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for panel, site in zip(panels, sites, strict=False):
            _draw_site(panel, site, target=target)
        for panel in panels[len(sites) :]:
            panel.set_visible(False)
        panels[0].set_ylim(0, _HEADROOM * highest)
        for row in grid:
            row[0].set_ylabel("Lifetime epsilon")
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
