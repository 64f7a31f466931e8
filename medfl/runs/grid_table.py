"""The tidy table of a grid of studies: ``results.csv``, and the same as ``results.parquet``.

One row for each model, site, patient, region and measure, so that figures and statistics need the
table and no run folder. The CSV file is the one that is read back; the Parquet file, which needs
pyarrow, is for whoever works on with it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from medfl.durable import write_atomically, written_aside
from medfl.errors import ReportError
from medfl.runs.files import text_of
from medfl.runs.grid_records import GridScore

TABLE = "results.csv"
PARQUET = "results.parquet"
COLUMNS = tuple(GridScore.model_fields)

_SCORE = TypeAdapter(GridScore)
_DIGITS = 6


def write_table(rows: Iterable[GridScore], *, folder: Path) -> bool:
    """Write both files.

    Args:
        rows: The table.
        folder: Of the grid.

    Returns:
        Whether the Parquet file was written, which needs pyarrow.
    """
    values = [row.model_dump() for row in rows]
    return write_rows(values, COLUMNS, csv_file=folder / TABLE, parquet_file=folder / PARQUET)


def write_rows(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str],
    *,
    csv_file: Path,
    parquet_file: Path,
) -> bool:
    """Write rows as CSV, in which nothing is an empty cell, and as Parquet, where it is null.

    Returns:
        Whether the Parquet file was written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({name: _cell(row[name]) for name in columns} for row in rows)
    write_atomically(csv_file, text.getvalue().encode())
    try:
        from pyarrow import parquet, table
    except ImportError:
        parquet_file.unlink(missing_ok=True)  # of an earlier table
        return False
    with written_aside(parquet_file) as draft:
        parquet.write_table(table({name: [row[name] for row in rows] for name in columns}), draft)
    return True


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return "" if value is None else value


def read_table(folder: Path) -> tuple[GridScore, ...]:
    """The table of a grid.

    Raises:
        ReportError: If it is missing or damaged.
    """
    path = folder / TABLE
    reader = csv.DictReader(text_of(path).splitlines(), strict=True)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ReportError(
            f"{path}: expected the columns {list(COLUMNS)}, found {list(reader.fieldnames or ())}"
        )
    try:
        return tuple(_score(row, where=f"{path}: line {reader.line_num}") for row in reader)
    except csv.Error as error:
        raise ReportError(f"{path}: expected comma-separated values, found: {error}") from None


def _score(row: Mapping[str, str | None], *, where: str) -> GridScore:
    try:
        values = {
            **row,
            "seed": int(row["seed"] or ""),
            "epsilon": float(row["epsilon"]) if row["epsilon"] else None,
            "value": float(row["value"] or ""),
        }
        return _SCORE.validate_python(values)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise ReportError(
            f"{where}: key {detail['loc'][0]}: {detail['msg']}, found {str(detail['input'])[:80]!r}"
        ) from None
    except ValueError:
        raise ReportError(f"{where}: expected numbers, found {list(row.values())}") from None
