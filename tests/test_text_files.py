"""Lists and tables as Notepad, Excel and a shell leave them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.text_files import read_lines, read_table

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
COLUMNS = ("patient", "identifier")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_name_with_blanks_is_one_line(encoding: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.txt"
    path.write_bytes(ending.join(["Case 01", "", "  Müller 2 ", "third"]).encode(encoding))
    assert read_lines(path) == ["Case 01", "Müller 2", "third"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_by_its_headings_separator(
    encoding: str, separator: str, tmp_path: Path
) -> None:
    rows = [COLUMNS, ("A 1", "1950"), (), ("B", '"x,;y"')]
    text = "".join(separator.join(row) + "\r\n" for row in rows)
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(encoding))
    assert read_table(path, columns=COLUMNS) == [(2, ["A 1", "1950"]), (4, ["B", "x,;y"])]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the columns patient,identifier"),
        (b"identifier,patient\n", "the columns patient,identifier"),
        (b"\xff\xff", "text in UTF-8 or UTF-16"),
        (b'patient,identifier\nA,"open\n', "values separated by commas"),
    ],
)
def test_something_else_is_told_without_a_quote(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_table(path, columns=COLUMNS)
