"""A file that breaks a rule ends in one sentence that names file, key, rule and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from medfl.config.files import MAX_BYTES, Section, expand_variables, load
from medfl.errors import ConfigError


class Part(Section):
    """A table inside the file."""

    sizes: tuple[int, int]
    place: Path = Path("here")


class Whole(Section):
    """A small file with one of everything."""

    name: str
    ratio: float = Field(gt=0)
    count: int = 1
    on: bool = False
    part: Part


SOUND = """
name = "north"
ratio = 0.5
[part]
sizes = [1, 2]
"""


def loaded(tmp_path: Path, text: str | bytes) -> Whole:
    path = tmp_path / "some.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, Whole)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert caught.value.code == "config"
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'some.toml'}: ")
    assert "\n" not in message
    return message.partition(": ")[2]


def test_a_sound_file_becomes_a_frozen_value(tmp_path: Path) -> None:
    found = loaded(tmp_path, SOUND)
    assert found == Whole(name="north", ratio=0.5, part=Part(sizes=(1, 2)))
    with pytest.raises(ValueError, match="frozen"):
        found.name = "south"  # type: ignore[misc]


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    plain = loaded(tmp_path, SOUND)
    assert loaded(tmp_path, b"\xef\xbb\xbf" + SOUND.replace("\n", "\r\n").encode()) == plain


def test_whole_numbers_stand_for_fractions_and_scientific_notation_is_a_number(
    tmp_path: Path,
) -> None:
    assert loaded(tmp_path, SOUND.replace("0.5", "2")).ratio == 2.0
    assert loaded(tmp_path, SOUND.replace("0.5", "1e-5")).ratio == 1e-5


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ratio", "ration", "key ratio: required, but missing; key ration: unknown key"),
        ('name = "north"', "", "key name: required, but missing"),
        ("0.5", '"0.5"', "key ratio: Input should be a valid number, found '0.5'"),
        ("0.5", "true", "key ratio: Input should be a valid number, found True"),
        ("0.5", "0.0", "key ratio: Input should be greater than 0, found 0.0"),
        ("0.5", "nan", "key ratio: Input should be a finite number, found nan"),
        ("0.5", "inf", "key ratio: Input should be a finite number, found inf"),
        ("[1, 2]", "[1]", "key part.sizes.1: required, but missing"),
        ("[1, 2]", '[1, "2"]', "key part.sizes.1: Input should be a valid integer, found '2'"),
        ("[1, 2]", "[1, 2.5]", "key part.sizes.1: Input should be a valid integer, found 2.5"),
        ("[part]", "[part]\nextra = 1", "key part.extra: unknown key"),
        ('"north"', "5", "key name: Input should be a valid string, found 5"),
        ("ratio", 'on = "no"\nratio', "key on: Input should be a valid boolean, found 'no'"),
        ("ratio", "on = 0\nratio", "key on: Input should be a valid boolean, found 0"),
        ("ratio", "count = 1.0\nratio", "key count: Input should be a valid integer, found 1.0"),
    ],
)
def test_each_mistake_names_its_key_its_rule_and_its_value(
    old: str, new: str, expected: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, SOUND.replace(old, new)) == expected


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = SOUND.replace("0.5", "-1").replace("[1, 2]", "[]").replace("north", "x")
    assert refusal(tmp_path, "more = 1\n" + text).count("key ") == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SOUND + "sizes = [1, 2]", "expected TOML, found: Cannot overwrite a value"),
        ("name = 'a'\nname = 'b'", "expected TOML, found: Cannot overwrite a value"),
        ("name = north", "expected TOML, found: Invalid value (at line 1"),
        ("= 5", "expected TOML, found: "),
        ("[part", "expected TOML, found: "),
        ("a:\n  b: 1", "expected TOML, found: "),
        (b"\xff\xff\xff", "expected text in UTF-8 or UTF-16, found other bytes"),
        (b"PK\x03\x04\x00\x00", "expected TOML, found: "),
        ("", "key name: required, but missing"),
        ("ratio = 2020-01-01", "expected strings, numbers, booleans, lists and tables; found a da"),
        ("ratio = 07:32:00", "expected strings, numbers, booleans, lists and tables; found a date"),
    ],
)
def test_a_file_that_is_no_toml_says_so(text: str | bytes, expected: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, text).startswith(expected)


def test_a_file_of_ten_megabytes_is_not_read(tmp_path: Path) -> None:
    text = SOUND + "# padding\n" * 1_000_000
    assert refusal(tmp_path, text) == f"expected at most {MAX_BYTES} bytes, found {len(text)}"


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="expected a readable file, found: ") as caught:
            load(path, Whole)
        assert str(path) in str(caught.value)


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, SOUND.replace("0.5", '"' + "x" * 5000 + '"'))) < 300


def test_variables_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFL_TEST_DATA", "/data")
    assert expand_variables("${MEDFL_TEST_DATA}/north/${MEDFL_TEST_DATA}") == "/data/north//data"
    assert expand_variables("$MEDFL_TEST_DATA and $$") == "$MEDFL_TEST_DATA and $$"


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDFL_TEST_DATA", raising=False)
    with pytest.raises(ValueError, match="environment variable MEDFL_TEST_DATA to be set"):
        expand_variables("${MEDFL_TEST_DATA}/north")


def test_expansion_happens_once_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"MEDFL_TEST_A": "${MEDFL_TEST_B}", "MEDFL_TEST_B": "$(id)"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert expand_variables("${MEDFL_TEST_A}") == "${MEDFL_TEST_B}"
    assert expand_variables("${MEDFL_TEST_B}") == "$(id)"
