"""The report of a secure sum says who would have to work together to see what."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import ReportError
from medfl.reporting.collusion import colluding_table, who_sees_what
from medfl.reporting.report import render
from medfl.runs.records import SecureSum
from medfl.runs.results import read_run

RunBuilder = Callable[..., Path]


def secure(**changes: int) -> SecureSum:
    """Four sites of which three have to stay, and nobody may collude."""
    values = {"sites": 4, "threshold": 3, "honest_sites": 3, "colluding_sites": 0}
    return SecureSum(**(values | changes))


def text_of(folder: Path) -> str:
    """The words of the report, without figures."""
    page = render(read_run(folder), {})
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture
def folder(build_run: RunBuilder) -> Path:
    return build_run(secure_sum=secure())


def test_the_statement_names_the_trust_mode_and_what_is_released(folder: Path) -> None:
    text = text_of(folder)
    statement = text[text.index("Technical statement") : text.index("3 Privacy loss by site")]
    for words in (
        "differentially private with ε ≤ 7.90 and δ = 10⁻⁵",
        "one patient as the unit",
        "zero-out adjacency",
        "in the secure trust mode",
        "the server sees only the sum of a round",
        "of standard deviation σ C / √3",
        "against the server alone",
        "3 of 4 sites have to stay",
        "Released: the noisy sum of each round",
        "no update of a single site",
    ):
        assert words in statement
    for words in ("local trust mode", "the server is not trusted", "added noise to every model"):
        assert words not in text


def test_tolerated_sites_stand_in_the_promise(build_run: RunBuilder) -> None:
    text = text_of(build_run(secure_sum=secure(honest_sites=2, colluding_sites=1)))
    assert "against the server together with up to 1 other site" in text
    assert "The figure holds also if the server works together with 1 other site" in text
    assert "The server and 1 of the other sites together see no more than sums" in text


def test_a_table_has_every_site_and_the_worst_one(folder: Path) -> None:
    table = colluding_table(read_run(folder))
    assert table.head == (
        "Site",
        "The server alone",
        *(f"The server and {count} of the other sites" for count in (1, 2, 3)),
    )
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["North", "South", "East", "West", "Worst site"]
    assert rows["Worst site"] == rows["North"] == ("7.90", "11.9", "17.8", "26.7")
    assert table.caption in text_of(folder)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 2),  # 3 of 4: with 2 more signatures there are two sets of survivors
        ({"sites": 10, "threshold": 8, "honest_sites": 7, "colluding_sites": 1}, 6),
    ],
)
def test_it_is_said_from_when_on_a_single_update_can_be_read(
    changes: dict[str, int], count: int
) -> None:
    sentences = who_sees_what(secure(**changes))
    expected = f"The server and {count} of the other sites together could unmask"
    assert any(sentence.startswith(expected) for sentence in sentences)


def test_where_all_sites_stay_only_all_others_could_take_everything_else_off() -> None:
    sentences = who_sees_what(secure(threshold=4, honest_sites=4))
    assert not any("unmask" in sentence for sentence in sentences)
    assert any("3 of the other sites, which are all others" in sentence for sentence in sentences)


def test_local_noise_has_no_such_table(build_run: RunBuilder) -> None:
    text = text_of(build_run())
    assert "work together" not in text
    assert "local trust mode" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_origin": "seeded"}, "trust mode: secure, the server sees only the sum"),
        ({"noise_multiplier": 0.0}, "trust mode: secure. Released: the sum of each round"),
    ],
)
def test_a_run_without_a_guarantee_names_its_mode_too(
    build_run: RunBuilder, options: dict[str, Any], words: str
) -> None:
    assert words in text_of(build_run(secure_sum=secure(), **options))


def test_a_sum_of_a_study_that_has_none_is_a_contradiction(folder: Path) -> None:
    path = folder / "federation.json"
    found = json.loads(path.read_text())
    del found["secure_sum"]
    path.write_text(json.dumps(found))
    with pytest.raises(ReportError, match="a secure sum exactly where"):
        read_run(folder)
