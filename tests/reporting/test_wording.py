from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.reporting import wording
from medfl.reporting.estimates import Estimate
from medfl.reporting.texts import ENGLISH

losses = st.floats(min_value=1e-3, max_value=9e6)


def number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


@given(losses)
def test_a_promise_is_never_rounded_down(value: float) -> None:
    shown = number(wording.at_most(value))
    assert value * (1 - 1e-11) <= shown <= value * 1.01 + 1e-12


@given(losses)
def test_what_is_left_is_never_rounded_up(value: float) -> None:
    shown = number(wording.at_least(value))
    assert value * 0.99 - 1e-12 <= shown <= value * (1 + 1e-11)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7.991, "8.00"),
        (8.0, "8.00"),
        (5.800000000000001, "5.80"),
        (12.34, "12.4"),
        (0.0123, "0.0123"),
        (2980.96, "2,990"),
        (0.0, "0"),
        (math.inf, "∞"),
        (0.00012, "1.2 × 10⁻⁴"),
        (9.999e-5, "10⁻⁴"),
    ],
)
def test_upper_bounds_have_three_digits(value: float, shown: str) -> None:
    assert wording.at_most(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e-5, "10⁻⁵"), (2e-5, "2 × 10⁻⁵"), (1 / 3400, "3 × 10⁻⁴"), (2.51e-6, "2.6 × 10⁻⁶")],
)
def test_small_probabilities_are_powers_of_ten_rounded_up(value: float, shown: str) -> None:
    assert wording.power(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "50"), (0.01, "1"), (0.25071, "25.1"), (0.9999, "100"), (1.0, "100")]
)
def test_shares_are_per_cent_rounded_up(value: float, shown: str) -> None:
    assert wording.percent_at_most(value) == f"{shown}\u202f%"


def test_intervals_read_as_text() -> None:
    found = Estimate(value=-0.034, low=-0.081, high=0.004, patients=9)
    assert wording.difference_estimate(found) == "−0.03 (−0.08 to 0.00)"
    found = Estimate(value=0.7149, low=0.6651, high=0.75, patients=9)
    assert wording.dice_estimate(found) == "0.71 (0.67 to 0.75)"
    found = Estimate(value=5.23, low=3.1, high=12.6, patients=9)
    assert wording.millimetre_estimate(found) == "5.2 (3.1 to 13)"


def test_only_a_guaranteed_run_is_called_private() -> None:
    assert "private" in wording.variant_name("federated", guarantee="given")
    assert wording.variant_name("federated", guarantee="none") == "Federated, without privacy"
    assert "private" not in wording.variant_name("federated", guarantee="simulated")
    assert "private" not in wording.variant_name("federated", guarantee="overstated")


def test_words_agree_with_counts() -> None:
    assert wording.counted(1, "site") == "1 site"
    assert wording.counted(4000, "site") == "4,000 sites"
    assert ENGLISH.listing(["A"]) == "A"
    assert wording.shortened("a" * 16) == "a" * 16
    assert wording.shortened("a" * 17) == "a" * 15 + "…"
    assert ENGLISH.listing(["A", "B", "C"]) == "A, B and C"
    assert wording.plain(0.001) == "0.001"
    assert ENGLISH.day(datetime(2026, 1, 31, tzinfo=UTC)) == "31 January 2026"
