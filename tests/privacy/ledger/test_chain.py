import hashlib
import json
import math
from typing import Any

import pytest

from medfl.errors import LedgerError
from medfl.privacy.ledger.chain import GENESIS, Entry, read_entry

ENTRY = Entry(
    sequence=2,
    previous="ab" * 32,
    time="2030-01-01T00:00:00.000+00:00",
    kind="charge",
    content={"steps": 5, "delta": 1e-5, "study": "Glioma, größer"},
)
PLACE: dict[str, Any] = {"sequence": 2, "previous": "ab" * 32, "stored_hash": ENTRY.hash}


def test_an_entry_reads_back_from_its_body() -> None:
    assert read_entry(ENTRY.body, **PLACE) == ENTRY


def test_the_body_is_canonical_json_and_its_sha256_the_hash() -> None:
    values = {name: getattr(ENTRY, name) for name in ("sequence", "previous", "time", "kind")}
    values["content"] = ENTRY.content
    assert ENTRY.body == json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert ENTRY.hash == hashlib.sha256(ENTRY.body.encode()).hexdigest()


def test_the_hash_covers_the_hash_before_it() -> None:
    other = Entry(
        sequence=2, previous=GENESIS, time=ENTRY.time, kind=ENTRY.kind, content=ENTRY.content
    )
    assert other.hash != ENTRY.hash


@pytest.mark.parametrize(
    ("name", "value"),
    [("sequence", 3), ("sequence", 1), ("previous", GENESIS), ("stored_hash", "0" * 64)],
)
def test_an_entry_out_of_its_place_is_refused(name: str, value: Any) -> None:
    with pytest.raises(LedgerError, match="edited or damaged"):
        read_entry(ENTRY.body, **{**PLACE, name: value})


@pytest.mark.parametrize(
    "body",
    [
        ENTRY.body.replace('"steps":5', '"steps":1'),
        ENTRY.body.replace('"steps":5', '"steps": 5'),
        ENTRY.body.replace('"kind"', '"sort"'),
        ENTRY.body[:-1],
        "",
        "[]",
        "null",
    ],
)
def test_a_changed_body_is_refused(body: str) -> None:
    with pytest.raises(LedgerError, match="edited or damaged"):
        read_entry(body, **PLACE)


def test_infinity_has_no_place_in_an_entry() -> None:
    entry = Entry(sequence=1, previous=GENESIS, time="", kind="", content={"epsilon": math.inf})
    with pytest.raises(ValueError, match="JSON"):
        _ = entry.body
