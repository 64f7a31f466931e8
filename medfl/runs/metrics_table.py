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
_ADDED = ("lesion_dice", "lesion_hd95_mm")  # medfl 0.1 did not write them
_HEADINGS = (COLUMNS, tuple(name for name in COLUMNS if name not in _ADDED))
_OPTIONAL = ("hd95_mm", *_ADDED)

_SCORE = TypeAdapter(Score)


def row_of(score: Score) -> dict[str, object]:
    """A score as a row; what was not measured is an empty cell."""
    return {
        **score.model_dump(),
        "dice": _cell(score.dice, digits=6),
        "hd95_mm": _cell(score.hd95_mm, digits=3),
        "lesion_dice": _cell(score.lesion_dice, digits=6),
        "lesion_hd95_mm": _cell(score.lesion_hd95_mm, digits=3),
    }


def _cell(value: float | None, *, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


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
    columns = tuple(reader.fieldnames or ())
    _expect(path, f"the columns {list(COLUMNS)}", list(columns), columns in _HEADINGS)
    try:
        for row in reader:
            where = path.with_name(f"{path.name}: line {reader.line_num}")
            cells = [cell for cell in row.values() if cell is not None]  # as of a short row
            whole = len(cells) == len(row) == len(columns)
            _expect(where, f"{len(columns)} columns", cells, whole)
            yield reader.line_num, json.dumps(_values(row, where))
    except csv.Error as error:
        raise ReportError(f"{path}: expected comma-separated values, found: {error}") from None


def _values(row: Mapping[str, str], where: Path) -> dict[str, object]:
    try:
        numbers = {"round": int(row["round"]), "dice": float(row["dice"])}
        measured = {name: float(row[name]) if row.get(name) else None for name in _OPTIONAL}
    except (TypeError, ValueError):
        raise ReportError(f"{where}: expected numbers, found {list(row.values())}") from None
    return {**row, **numbers, **measured}


def _expect(path: Path, rule: str, found: object, holds: bool) -> None:
    if not holds:
        raise ReportError(f"{path}: expected {rule}, found {str(found)[:200]}")
