"""Who caught which bug: results of all columns, the table, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bugs import NONE

Outcome = Literal["caught", "missed", "stopped", "error"]

COLUMNS = {
    "mechanism": "mechanism test",
    "sensitivity": "sensitivity on the real path",
    "canaries": "canaries",
    "tests": "fast tests",
}
"""Column and its heading; all but the tests are parts of `medfl audit`."""

_SHOWN = {
    "caught": "caught",
    "missed": "no",
    "stopped": "stops",
    "error": "ERROR",
    None: "–",
}
_SHOWN_OF_NONE = {**_SHOWN, "caught": "ACCUSED", "missed": "silent"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one column says of one bug.

    Attributes:
        outcome: ``stopped`` if an audit ended without a verdict, which is not counted as a catch;
            ``error`` if the column could not be run at all.
        found: What was found: figures, a test, or the end of an error.
        seconds: How long it took.
    """

    outcome: Outcome
    found: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bug, and the columns that were run for it.

    Attributes:
        name: Of the bug, or `NONE`.
        group: Which part of the code is wrong.
        sentence: What the code does instead.
        cells: By column.
    """

    name: str
    group: str
    sentence: str
    cells: Mapping[str, Cell]

    @property
    def caught(self) -> bool:
        """Whether anything was found."""
        return any(cell.outcome == "caught" for cell in self.cells.values())


def problems(rows: Iterable[Row]) -> list[str]:
    """Bugs that nothing caught, accusations of the right code, and columns that failed."""
    found = []
    for row in rows:
        for column, cell in row.cells.items():
            if cell.outcome == "error":
                found.append(f"{row.name}: {COLUMNS[column]} could not be run: {cell.found}")
            elif row.name == NONE and cell.outcome != "missed":
                found.append(f"The right code is accused by {COLUMNS[column]}: {cell.found}")
        if row.name != NONE and not row.caught:
            found.append(f"{row.name}: caught by nothing")
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The table, as it can be pasted into a README."""
    columns = [column for column in COLUMNS if any(column in row.cells for row in rows)]
    lines = [
        _line(["bug", "what the code does", *(COLUMNS[column] for column in columns)]),
        _line(["---"] * (2 + len(columns))),
    ]
    for row in rows:
        shown = _SHOWN_OF_NONE if row.name == NONE else _SHOWN
        outcomes = [
            row.cells[column].outcome if column in row.cells else None for column in columns
        ]
        lines.append(_line([row.name, row.sentence, *(shown[outcome] for outcome in outcomes)]))
    planted = [row for row in rows if row.name != NONE]
    lines.append(
        _line(
            [
                "**caught**",
                f"**{sum(row.caught for row in planted)} of {len(planted)}**",
                *(_total(planted, column) for column in columns),
            ]
        )
    )
    return "\n".join(lines)


def write_json(path: Path, rows: Sequence[Row], *, seconds: float) -> None:
    """Everything that was found.

    Args:
        path: The file.
        rows: All rows.
        seconds: Of the whole command so far.
    """
    values: dict[str, Any] = {
        "seconds": seconds,
        "problems": problems(rows),
        "bugs": [asdict(row) | {"caught": row.caught} for row in rows],
    }
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _total(rows: Sequence[Row], column: str) -> str:
    cells = [row.cells[column] for row in rows if column in row.cells]
    return f"{sum(cell.outcome == 'caught' for cell in cells)} of {len(cells)}"


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
