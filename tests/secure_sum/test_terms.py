from __future__ import annotations

import json
from typing import Any

import pytest

from medfl.secure_sum.terms import Roster, RoundTerms, minimum_threshold
from tests.secure_sum.rounds import make_roster, make_terms, public_key

KEYS = {"b": public_key("b"), "a": public_key("a")}


def test_a_roster_is_the_same_in_whatever_order_it_was_given() -> None:
    roster = Roster.of(KEYS)
    assert roster.names == ("a", "b")
    assert roster == Roster.of(dict(reversed(KEYS.items())))
    assert roster.key_of("a") == KEYS["a"]
    assert roster.key_of("c") == ""
    assert [roster.point_of(name) for name in roster.names] == [1, 2]
    assert len(roster) == 2


def test_the_digest_of_a_roster_names_who_has_which_key() -> None:
    swapped = Roster.of({"a": KEYS["b"], "b": KEYS["a"]})
    renamed = Roster.of({"a": KEYS["a"], "c": KEYS["b"]})
    assert len({Roster.of(KEYS).digest, swapped.digest, renamed.digest}) == 3


@pytest.mark.parametrize(
    "sites",
    [
        tuple(KEYS.items()),  # not in order
        (("a", KEYS["a"]), ("a", KEYS["b"])),
        (("a", KEYS["a"]), ("b", KEYS["a"])),
        (("", KEYS["a"]),),
        (("a\n", KEYS["a"]),),
        (("\ud800", KEYS["a"]),),
        (("a" * 201, KEYS["a"]),),
        (("a", KEYS["a"].upper()),),
        (("a", KEYS["a"][:-2]),),
    ],
)
def test_a_roster_that_says_less_or_more_than_one_key_a_site_is_refused(sites: Any) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Roster(sites=sites)


@pytest.mark.parametrize(
    "change",
    [
        {"run": ""},
        {"scale": ""},
        {"round": 0},
        {"length": 0},
        {"model_digest": "A" * 64},
        {"model_digest": "a" * 63},
        {"modulus_bits": 48.5},
        {"modulus_bits": 16},
        {"bound": 0},
        {"bound": 2**38},
        {"bound": 2**30, "modulus_bits": 32},
        {"threshold": 2},
        {"threshold": 5},
        {"threshold": 3, "colluding_sites": 2},
        {"colluding_sites": -1},
    ],
)
def test_terms_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        make_terms(4, **{"threshold": 3, **change})


@pytest.mark.parametrize("bits", [32, 40, 48, 56, 64])
def test_the_largest_bound_leaves_one_spare_bit(bits: int) -> None:
    largest = 2 ** (bits - 2) - 1
    assert make_terms(modulus_bits=bits, bound=largest).bound == largest
    with pytest.raises(ValueError, match="bound"):
        make_terms(modulus_bits=bits, bound=largest + 1)


def test_one_site_alone_has_no_secure_sum() -> None:
    with pytest.raises(ValueError, match="two sites or more"):
        make_terms(4, roster=make_roster(1), threshold=1)


@pytest.mark.parametrize(
    ("sites", "colluding", "threshold"),
    [(2, 0, 2), (2, 1, 2), (3, 0, 2), (3, 1, 3), (4, 0, 3), (4, 1, 3), (10, 3, 7), (128, 20, 75)],
)
def test_the_smallest_threshold_is_above_half_of_sites_and_colluders(
    sites: int, colluding: int, threshold: int
) -> None:
    assert minimum_threshold(sites=sites, colluding_sites=colluding) == threshold
    with pytest.raises(ValueError, match="Expected a threshold"):
        make_terms(sites, colluding_sites=colluding, threshold=threshold - 1)


def test_two_sets_of_signatures_need_more_sites_than_there_are() -> None:
    for sites in range(2, 40):
        for colluding in range(sites):
            threshold = minimum_threshold(sites=sites, colluding_sites=colluding)
            assert 2 * threshold > (sites - colluding) + 2 * colluding
            assert threshold - colluding >= 1


def test_no_threshold_is_sound_where_all_may_collude() -> None:
    with pytest.raises(ValueError, match="Expected a threshold"):
        minimum_threshold(sites=4, colluding_sites=4)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "run-2"},
        {"round": 2},
        {"roster": make_roster(5)},
        {"model_digest": "b" * 64},
        {"length": 6},
        {"modulus_bits": 48},
        {"bound": 2**29},
        {"scale": "2^20/1.50"},
        {"threshold": 4},
        {"colluding_sites": 1},
    ],
)
def test_the_digest_binds_every_term(change: dict[str, Any]) -> None:
    assert (
        make_terms(4, threshold=4 if "roster" in change else 3).digest
        != make_terms(4, **{"threshold": 4 if "roster" in change else 3, **change}).digest
    )


def test_terms_survive_json() -> None:
    terms = make_terms(4, colluding_sites=1)
    content = json.loads(json.dumps(terms.to_dict()))
    assert RoundTerms.from_dict(content) == terms
    for change in ({"bound": 2**29}, {"digest": "0" * 64}, {"round": "1"}, {"roster": None}):
        with pytest.raises(ValueError, match="Expected"):
            RoundTerms.from_dict({**content, **change})
    with pytest.raises(ValueError, match="Expected"):
        RoundTerms.from_dict({})
