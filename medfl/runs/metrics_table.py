"""``metrics.csv``: one row for each variant, round, held-out patient and region."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter

from medfl.errors import ReportError
from medfl.runs.files import parsed, text_of
from medfl.runs.records import Score

NAME = "metrics.csv"
COLUMNS = tuple(Score.model_fields)

_SCORE = TypeAdapter(Score)


def row_of(score: Score) -> dict[str, object]:
    """A score as a row; a distance that was not measured is an empty cell."""
    return {
        **score.model_dump(),
        "dice": f"{score.dice:.6f}",
        "hd95_mm": "" if score.hd95_mm is None else f"{score.hd95_mm:.3f}",
    }


def read_scores(folder: Path) -> tuple[Score, ...]:
    """The scores in a run folder; none where no site shares them.

    Raises:
        ReportError: If the file is damaged.
    """
    path = folder / NAME
    return scores_in(text_of(path), where=path) if path.exists() else ()


def scores_in(text: str, *, where: Path) -> tuple[Score, ...]:
    """The scores of a table.

    Args:
        text: The table, with its heading.
        where: The file, for errors.

    Raises:
        ReportError: If a row is damaged.
    """
    return tuple(
        parsed(row, _SCORE, where=f"{where}: line {number}")
        for number, row in _rows_as_json(text, where)
    )


def _rows_as_json(text: str, path: Path) -> Iterator[tuple[int, str]]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    _expect(path, f"the columns {list(COLUMNS)}", reader.fieldnames, list(COLUMNS))
    try:
        for row in reader:
            yield reader.line_num, json.dumps(_values(row, path, reader.line_num))
    except csv.Error as error:
        raise ReportError(f"{path}: expected comma-separated values, found: {error}") from None


def _values(row: Mapping[str, str], path: Path, number: int) -> dict[str, object]:
    where = path.with_name(f"{path.name}: line {number}")
    try:
        numbers = {"round": int(row["round"]), "dice": float(row["dice"])}
        hd95 = float(row["hd95_mm"]) if row["hd95_mm"] else None
    except (TypeError, ValueError):
        raise ReportError(f"{where}: expected numbers, found {list(row.values())}") from None
    _expect(where, f"{len(COLUMNS)} columns", len(row), len(COLUMNS))
    return {**row, **numbers, "hd95_mm": hd95}


def _expect(path: Path, rule: str, found: object, expected: object) -> None:
    if found != expected:
        raise ReportError(f"{path}: expected {rule}, found {str(found)[:200]}")
