"""The table and the picture of what a secure sum costs; `secure_sum_cost.py` measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

SITES = (2, 8, 32, 128)
MILLIONS = (0.2, 1.0, 5.0)

Cost = Mapping[str, Any]


def table(costs: Sequence[Cost]) -> Table:
    """One row a measurement: bytes and seconds, without the secure sum and with it."""
    found = Table(title="A round of a secure sum beside the same round without it")
    for heading in (
        "sites",
        "million\nparameters",
        "MB a site\nwithout / with",
        "site s\nwithout / with",
        "server s\nwithout / with",
        "site s a million",
        "memory of a site\nover a model's",
    ):
        found.add_column(heading, justify="right")
    for cost in costs:
        plain, millions = cost["plain"], cost["integers"] / 1e6
        found.add_row(
            str(cost["sites"]),
            f"{millions:g}",
            f"{plain['site_bytes'] / 1e6:.2f} / {cost['site_bytes'] / 1e6:.2f}",
            f"{plain['site_seconds']:.3f} / {cost['site_seconds']:.3f}",
            f"{plain['server_seconds']:.3f} / {cost['server_seconds']:.3f}",
            f"{cost['site_seconds'] / millions:.3f}",
            f"{cost['site_memory'] / plain['site_bytes']:.1f}",
        )
    return found


def draw(costs: Sequence[Cost]) -> Figure:
    """Seconds against sites, at a site and at the server, a line for each size of the model."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, title in zip(
        panels, ("site_seconds", "server_seconds"), ("one site", "server"), strict=True
    ):
        _draw_panel(panel, costs, key=key)
        panel.set_title(title)
        panel.set_xlabel("sites")
    panels[0].set_ylabel("seconds of a round")
    panels[1].legend(title="million parameters")
    return figure


def _draw_panel(panel: Axes, costs: Sequence[Cost], *, key: str) -> None:
    for size in sorted({cost["integers"] for cost in costs}):
        row = sorted(
            (cost for cost in costs if cost["integers"] == size), key=lambda cost: cost["sites"]
        )
        sites = [cost["sites"] for cost in row]
        panel.plot(sites, [cost[key] for cost in row], marker="o", label=f"{size / 1e6:g}")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    ticks = sorted({cost["sites"] for cost in costs})
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.grid(alpha=0.3)
