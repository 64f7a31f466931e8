"""Text and tables as people's programs save them: by whatever spreadsheet, on whatever system."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Sequence
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATORS = (",", ";", "\t")


def decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its first bytes say so.

    Raises:
        ValueError: If it is neither; the message is what was expected, and quotes nothing.
    """
    try:
        return content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("text in UTF-8 or UTF-16") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a file that are not blank, without blanks at their ends.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no text.
    """
    lines = (line.strip() for line in decoded(path.read_bytes()).splitlines())
    return [line for line in lines if line]


def read_table(path: Path, *, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The rows below the heading of a table, separated by commas, semicolons or tabs.

    Args:
        path: The file.
        columns: Its heading, whose separator is that of the rows.

    Returns:
        Number of the line, and its values; blank lines are left out.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it has another heading, or is no table; the message is what was expected.
    """
    lines = decoded(path.read_bytes()).splitlines(keepends=True)
    heading = lines[0].strip() if lines else ""
    for separator in _SEPARATORS:
        names = [name.strip().strip('"') for name in heading.split(separator)]
        if names == list(columns):
            break
    else:
        raise ValueError(f"the columns {','.join(columns)}")
    try:
        reader = csv.reader(lines[1:], delimiter=separator, strict=True)
        return [(reader.line_num + 1, row) for row in reader if row]
    except csv.Error:
        raise ValueError("values separated by commas, semicolons or tabs") from None
