"""The small table of a grid: means over patients and seeds, and the differences that matter.

``aggregates.csv``, and the same as ``aggregates.parquet``: one row for each model, setting, site
and region. A row with a reference is a difference, paired by patient and seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medfl.reporting.estimates import Estimate, Measure
from medfl.reporting.grid_scores import GridScores, Setting
from medfl.runs.grid_table import write_rows
from medfl.runs.records import Variant

FILE = "aggregates.csv"
PARQUET = "aggregates.parquet"
COLUMNS = (
    *("variant", "trust", "epsilon", "model", "minus", "site", "region", "measure"),
    *("value", "low", "high", "patients", "seeds"),
)
# Distances are left out: their mean is that of the few patients in whom a region was missed.
MEASURES: tuple[Measure, ...] = ("dice", "lesion_dice")
DIFFERENCES: tuple[tuple[Variant, Variant], ...] = (
    ("adapted", "alone"),  # what joining brings
    ("federated", "initial-only"),  # what the federation learned
    ("federated", "non-private"),  # what the noise costs
    ("federated", "local-only"),
)


def write_aggregates(scores: GridScores, *, folder: Path) -> None:
    """Write both files.

    Args:
        scores: The table.
        folder: Of the grid.
    """
    rows = list(aggregates(scores))
    write_rows(rows, COLUMNS, csv_file=folder / FILE, parquet_file=folder / PARQUET)


def aggregates(scores: GridScores) -> Iterator[dict[str, object]]:
    """The rows; an empty site is all of them."""
    for setting in scores.settings:
        for model in scores.models:
            yield from _rows(scores, setting, model, None)
        for model, minus in DIFFERENCES:
            yield from _rows(scores, setting, model, minus)


def _rows(
    scores: GridScores, setting: Setting, model: Variant, minus: Variant | None
) -> Iterator[dict[str, object]]:
    for region in scores.regions:
        for site in (*scores.sites, ""):
            for measure in MEASURES:
                found = (
                    scores.mean(model, setting, region, site=site, measure=measure)
                    if minus is None
                    else scores.difference(
                        model, minus, setting, region, site=site, measure=measure
                    )
                )
                if found is not None:
                    yield {
                        "variant": setting.variant,
                        "trust": setting.trust,
                        "epsilon": setting.epsilon,
                        "model": model,
                        "minus": minus or "",
                        "site": site,
                        "region": region,
                        "measure": measure,
                        "seeds": len(scores.seeds),
                        **_numbers(found),
                    }


def _numbers(found: Estimate) -> dict[str, object]:
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "patients": found.patients,
    }
