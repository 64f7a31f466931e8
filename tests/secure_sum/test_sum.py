"""The sum is that of plain addition, bit for bit, whoever falls out when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.secure_sum.terms import MODULUS_BITS, RoundTerms
from tests.secure_sum.rounds import PHASES, make_terms, make_vectors, play, sum_of


def check(terms: RoundTerms, silent: dict[str, str], *, seed: int = 0) -> None:
    """Play a round and compare with what has to come out of it."""
    vectors = make_vectors(terms, seed=seed)
    played = play(terms, vectors, silent=silent)
    first = {
        site: PHASES.index(silent[site]) if site in silent else len(PHASES) for site in vectors
    }
    answered = [sum(phase < left for left in first.values()) for phase in range(len(PHASES))]
    if min(answered) < terms.threshold:
        assert played.code == "secure-sum-quorum"
        assert played.total.size == 0
    else:
        survivors = tuple(site for site in sorted(vectors) if first[site] > PHASES.index("mask"))
        assert played.survivors == survivors
        assert played.total.dtype == np.int64
        assert np.array_equal(played.total, sum_of(vectors, survivors))
    assert played.refused == {}


@st.composite
def rounds(draw: st.DrawFn, *, most: int) -> tuple[RoundTerms, dict[str, str], int]:
    sites = draw(st.integers(2, most))
    colluding = draw(st.integers(0, (sites - 1) // 2))
    terms = make_terms(
        sites,
        colluding_sites=colluding,
        length=draw(st.integers(1, 7)),
        modulus_bits=draw(st.sampled_from(MODULUS_BITS)),
        bound=2**20,
    )
    # Mostly few dropouts: rounds that end with a sum say more.
    dropouts = draw(st.integers(0, sites if draw(st.booleans()) else sites - terms.threshold))
    left = draw(st.permutations(terms.roster.names))[:dropouts]
    silent = {site: draw(st.sampled_from(PHASES)) for site in left}
    return terms, silent, draw(st.integers(0, 1000))


@given(rounds(most=7))
@settings(max_examples=20)
def test_every_pattern_of_dropouts_gives_the_exact_sum_or_none(drawn) -> None:
    terms, silent, seed = drawn
    check(terms, silent, seed=seed)


@pytest.mark.slow
@given(rounds(most=50))
@settings(max_examples=8)
def test_so_it_is_with_up_to_50_sites(drawn) -> None:
    terms, silent, seed = drawn
    check(terms, silent, seed=seed)


@pytest.mark.slow
def test_128_sites_of_which_some_leave_in_every_phase() -> None:
    terms = make_terms(128, colluding_sites=20)
    silent = {
        f"site-{10 * number:03}": phase
        for number, phase in enumerate(phase for phase in PHASES for _ in range(2))
    }
    check(terms, silent)


@pytest.mark.parametrize("phase", PHASES)
def test_two_sites_need_each_other_in_every_phase(phase: str) -> None:
    check(make_terms(2), {})
    check(make_terms(2), {"site-001": phase})


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_the_largest_sums_of_a_modulus_come_out_whole(bits: int) -> None:
    bound = 2 ** (bits - 2) - 1
    terms = make_terms(3, modulus_bits=bits, bound=bound, length=4)
    full = np.array([bound, -bound, bound, -bound])
    vectors = {
        "site-000": full,
        "site-001": np.array([-bound, bound, 0, 0]),
        "site-002": np.array([bound, -bound, 0, 0]),
    }
    assert np.array_equal(play(terms, vectors).total, full)


def test_a_vector_of_many_blocks_is_summed_as_well() -> None:
    terms = make_terms(3, length=2 * 2**15 + 77)
    vectors = make_vectors(terms)
    played = play(terms, vectors, silent={"site-001": "mask"})
    assert np.array_equal(played.total, sum_of(vectors, ("site-000", "site-002")))


def test_every_phase_may_run_in_a_process_of_its_own() -> None:
    terms = make_terms(5)
    vectors = make_vectors(terms)
    silent = {"site-000": "confirm", "site-003": "mask"}
    played = play(terms, vectors, silent=silent, restart=True)
    survivors = ("site-000", "site-001", "site-002", "site-004")
    assert played.survivors == survivors
    assert np.array_equal(played.total, sum_of(vectors, survivors))
