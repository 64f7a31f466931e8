"""The picture of who gains: what each site has alone, and what it gets by joining."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medfl.reporting import wording
from medfl.reporting.estimates import Estimate, in_region
from medfl.reporting.texts import ENGLISH, Texts
from medfl.reporting.unfound import found_regions
from medfl.reporting.utility_tables import gain
from medfl.runs.records import Region, Variant
from medfl.runs.results import RunResults

_WIDTH = 9.6  # inches
_HEADER, _ROW = 1.1, 0.36  # inches
_ALONE, _JOINED, _LOSS = "#d55e00", "#0072b2", "#b23b00"


def gains_figure(run: RunResults, texts: Texts = ENGLISH) -> Figure:
    """A panel a region, a line a site from what it has alone to what it gets by joining.

    Args:
        run: With the baselines ``alone`` and ``adapted``.
        texts: Of the reader's language.
    """
    regions, sites = found_regions(run), [site.name for site in run.sites]
    figure = Figure(figsize=(_WIDTH, _HEADER + _ROW * len(sites)), layout="constrained")
    panels = list(figure.subplots(1, len(regions), sharey=True, squeeze=False).flat)
    for panel, region in zip(panels, regions, strict=True):
        for row, site in enumerate(sites):
            ends = [_mean(run, name, region, site=site) for name in ("alone", "adapted")]
            gained = gain(run, region, site=site)
            if ends[0] is None or ends[1] is None or gained is None:
                continue
            alone, joined = (end.value for end in ends if end is not None)
            colour = _JOINED if gained.value >= 0 else _LOSS
            panel.plot([alone, joined], [row, row], color=colour, linewidth=2, alpha=0.5)
            panel.plot(alone, row, marker="X", color=_ALONE, markersize=8, linestyle="none")
            panel.plot(joined, row, marker="o", color=_JOINED, markersize=8, linestyle="none")
            panel.annotate(
                wording.signed(gained.value),
                (max(alone, joined), row),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=colour,
            )
        panel.set(title=wording.region_label(region, texts), xlabel=texts("figure.gains.axis"))
        panel.margins(x=0.25, y=0.2)
        panel.grid(axis="x")
        panel.set_yticks(range(len(sites)), [wording.shortened(site) for site in sites])
    panels[0].invert_yaxis()
    marks = [
        Line2D([], [], color=_ALONE, marker="X", linestyle="none", markersize=8),
        Line2D([], [], color=_JOINED, marker="o", linestyle="none", markersize=8),
    ]
    names = [texts("figure.gains.alone"), texts("figure.gains.joined")]
    figure.legend(marks, names, loc="outside lower center", ncols=2, handletextpad=0.1)
    return figure


def _mean(run: RunResults, variant: Variant, region: Region, *, site: str) -> Estimate | None:
    return in_region(run.scores_of(variant), region, measure="dice", statistic="mean", site=site)
