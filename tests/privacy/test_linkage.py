"""Sites find out whether they share patients, and nobody learns who they are."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.errors import ConfigError, DataError
from medfl.privacy.linkage import (
    Tokens,
    compare,
    create_key,
    make_tokens,
    normalised,
    read_identifiers,
    read_key,
    read_tokens,
    write_tokens,
)

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
QUOTED = "GEHEIM 4711"  # an identifier that no message may repeat


def of(site: str, *patients: str, key: bytes = KEY) -> Tokens:
    return make_tokens(site=site, patients=patients, key=key)


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "identifiers.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_shared_patients_are_counted_for_each_pair() -> None:
    found = compare([of("DU", "a", "b", "c"), of("HT", "b", "c", "d"), of("CS", "e")])
    assert {pair.sites: pair.patients for pair in found.pairs} == {
        ("DU", "HT"): 2,
        ("DU", "CS"): 0,
        ("HT", "CS"): 0,
    }
    assert found.groups == (("DU", "HT"),)


def test_nobody_shared_is_nothing_to_declare() -> None:
    assert compare([of("DU", "a"), of("HT", "b")]).groups == ()


def test_a_patient_of_three_sites_makes_one_group_of_them() -> None:
    found = compare([of("DU", "a", "b"), of("HT", "a", "b"), of("CS", "a", "c"), of("FG", "c")])
    assert found.groups == (("CS", "FG"), ("DU", "HT", "CS"))


def test_pairs_with_different_patients_are_not_taken_for_three_sites() -> None:
    found = compare([of("DU", "a", "c"), of("HT", "a", "b"), of("CS", "b", "c")])
    assert found.groups == (("DU", "CS"), ("DU", "HT"), ("HT", "CS"))


def test_tokens_are_a_keyed_hash_of_the_identifier() -> None:
    tokens = of("DU", "a-1", "B 2")
    expected = [
        hmac.new(KEY, b"medfl overlap patient\0" + name, hashlib.sha256).hexdigest()
        for name in (b"A1", b"B2")
    ]
    assert tokens.tokens == tuple(sorted(expected))
    assert set(tokens.tokens).isdisjoint(of("DU", "a-1", "B 2", key=OTHER_KEY).tokens)


def test_the_order_of_tokens_tells_nothing() -> None:
    names = [f"p{number}" for number in range(30)]
    assert of("DU", *names) == of("DU", *reversed(names))


def test_the_key_check_is_no_token_and_names_the_key() -> None:
    assert of("DU", "a").key_check == of("HT", "b").key_check
    assert of("DU", "a").key_check != of("DU", "a", key=OTHER_KEY).key_check
    assert of("DU", "a").key_check not in of("DU", "a").tokens


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ab 12-34", "AB1234"),
        ("\uff21\uff22\uff11\uff12", "ab12"),  # full width
        ("Stra\u00dfe", "STRASSE"),
        ("e\u0301", "\u00c9"),  # an accent of its own
        ("\u0390", "\u03aa\u0301"),  # a letter that upper case takes apart
        ("\u1100-\u1161", "\uac00"),  # a syllable that a sign had taken apart
    ],
)
def test_spelling_does_not_hide_a_person(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert compare([of("DU", one), of("HT", other)]).pairs[0].patients == 1


@pytest.mark.slow
@given(st.text())
def test_normalising_again_changes_nothing(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert all(character.isalnum() for character in once)


def test_files_made_with_different_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="one study key, found several"):
        compare([of("DU", "a"), of("HT", "a", key=OTHER_KEY)])


@pytest.mark.parametrize("names", [["DU"], ["DU", "DU"], ["DU", "HT", "DU"], []])
def test_a_comparison_needs_two_distinct_sites(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="two or more distinct sites"):
        compare([of(name, "a") for name in names])


def test_a_key_is_random_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        create_key(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert bytes.fromhex(path.read_text()) == read_key(path)
    assert len({read_key(path) for path in paths}) == 2
    assert all(len(read_key(path)) == 32 for path in paths)


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    before = read_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="expected a new file"):
        create_key(tmp_path / "key")
    assert read_key(tmp_path / "key") == before


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"ab" * 32, 0o640, "for medfl.s account only .* found mode 0640"),
        (b"ab" * 32, 0o604, "found mode 0604"),
        (b"ab" * 16, 0o600, "a key of 32 bytes, found 16"),
        (b"ab" * 33, 0o600, "a key of 32 bytes, found 33"),
        (b"", 0o600, "a key of 32 bytes, found 0"),
        (b"ab" * 31 + b"a", 0o600, "hexadecimal text, found a damaged"),
        (b"xy" * 32, 0o600, "hexadecimal text, found a damaged"),
        (b"\xff" * 32, 0o600, "hexadecimal text, found a damaged"),
    ],
)
def test_an_unfit_key_is_refused_and_not_repeated(
    content: bytes, mode: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=message) as caught:
        read_key(path)
    assert not content or content[:16].decode("latin-1") not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"key: expected a study key, found none.* overlap key"):
        read_key(tmp_path / "key")


def test_identifiers_replace_names(tmp_path: Path) -> None:
    identifiers = read_identifiers(
        table(tmp_path, "\ufeffpatient,identifier\nP1,12 34\n\nP2,99\nelsewhere,77\n")
    )
    assert identifiers == {"P1": "12 34", "P2": "99", "elsewhere": "77"}
    tokens = make_tokens(site="DU", patients=["P1", "P2"], key=KEY, identifiers=identifiers)
    assert tokens == of("DU", "1234", "99")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{QUOTED},x\n", "expected the columns patient,identifier, found something else"),
        ("", "expected the columns"),
        (f"patient,identifier\n{QUOTED}\n", "lines of two values, found 1 others"),
        (f"patient,identifier\nP1,{QUOTED},x\nP2\n", "lines of two values, found 2 others"),
        (f"patient,identifier\n{QUOTED},1\n{QUOTED} ,2\n", "one line a patient, found 1 more"),
        (f'patient,identifier\nP1,"{QUOTED}\n', "values separated by commas, semicolons or tabs"),
    ],
)
def test_a_damaged_table_is_refused_and_not_repeated(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_identifiers(table(tmp_path, text))
    assert QUOTED not in str(caught.value)


def test_a_table_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identifiers.csv"
    with pytest.raises(DataError, match="a readable file"):
        read_identifiers(path)
    path.write_bytes("patient,identifier\nP1,\u00e4".encode("latin-1"))
    with pytest.raises(DataError, match="in UTF-8"):
        read_identifiers(path)


@pytest.mark.parametrize(
    ("identifiers", "message"),
    [
        ({QUOTED: "1"}, "an identifier for each patient, found 2 patients without one"),
        ({QUOTED: "1", "P2": " - ", "P3": ""}, "with a letter or digit, found 2 without any"),
        ({QUOTED: "1", "P2": "7 8", "P3": "78"}, "of their own for each patient, found 1 that"),
    ],
)
def test_identifiers_that_do_not_identify_are_counted_and_not_repeated(
    identifiers: Mapping[str, str], message: str
) -> None:
    patients = [QUOTED, "P2", "P3"]
    with pytest.raises(DataError, match=message) as caught:
        make_tokens(site="DU", patients=patients, key=KEY, identifiers=identifiers)
    assert not any(name in str(caught.value) for name in (*patients, "7 8", "78"))


def test_names_that_differ_in_their_signs_only_are_refused() -> None:
    with pytest.raises(DataError, match="found 1 that several share"):
        of("DU", "P-1", "P1", "P2")


def test_a_token_file_comes_back_and_holds_no_name(tmp_path: Path) -> None:
    path, tokens = tmp_path / "DU.json", of("DU", "TCGA-DU-5851", "TCGA-DU-5852")
    write_tokens(path, tokens)
    assert read_tokens(path) == tokens
    assert path.stat().st_mode & 0o777 == 0o600
    content = json.loads(path.read_text())
    assert set(content) == {"format", "site", "key_check", "tokens"}
    assert "TCGA" not in path.read_text()
    with pytest.raises(ConfigError, match="expected a new file"):
        write_tokens(path, tokens)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"DU"', '"D U"'),
        lambda text: text.replace("medfl overlap 1", "medfl overlap 2"),
        lambda text: text.replace('"key_check"', '"check"'),
        lambda text: json.dumps(json.loads(text) | {"tokens": []}),
        lambda text: json.dumps(json.loads(text) | {"tokens": json.loads(text)["tokens"][::-1]}),
        lambda text: json.dumps(json.loads(text) | {"tokens": ["0" * 64, "0" * 64]}),
        lambda text: json.dumps(json.loads(text) | {"tokens": [QUOTED]}),
        lambda text: json.dumps(json.loads(text) | {"patients": [QUOTED]}),
        lambda _: "[]",
        lambda _: "",
    ],
)
def test_a_damaged_token_file_is_refused(change: object, tmp_path: Path) -> None:
    assert callable(change)
    path = tmp_path / "DU.json"
    write_tokens(path, of("DU", "a", "b"))
    path.write_text(change(path.read_text()))
    with pytest.raises(
        ConfigError, match=r"DU\.json: expected a token file, found a dam"
    ) as caught:
        read_tokens(path)
    assert QUOTED not in str(caught.value)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DU\.json: expected a token file, found: No such file"):
        read_tokens(tmp_path / "DU.json")
