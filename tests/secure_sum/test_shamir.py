from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sympy import isprime, nextprime

from medfl.secure_sum.shamir import PRIME, SHARE_BYTES, evaluate, reconstruct, split

# The worked example of Wikipedia's article: f(x) = 1234 + 166 x + 94 x^2 over the primes' field.
COEFFICIENTS = [1234, 166, 94]
SHARES = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}


def test_the_field_is_the_smallest_prime_that_holds_32_bytes() -> None:
    assert isprime(PRIME)
    assert nextprime(2**256) == PRIME
    assert (PRIME - 1).bit_length() <= 8 * SHARE_BYTES


def test_the_published_polynomial_has_the_published_shares() -> None:
    assert {x: evaluate(COEFFICIENTS, x, prime=1613) for x in SHARES} == SHARES


@pytest.mark.parametrize("points", [(1, 2, 3), (2, 4, 5), (1, 3, 6), (4, 5, 6)])
def test_any_three_published_shares_give_the_published_secret(points: tuple[int, ...]) -> None:
    assert reconstruct({x: SHARES[x] for x in points}, threshold=3, prime=1613) == 1234


@given(st.integers(0, PRIME - 1), st.integers(1, 8), st.integers(0, 5), st.randoms())
def test_any_threshold_of_shares_gives_the_secret(
    secret: int, threshold: int, more: int, chance: random.Random
) -> None:
    points = chance.sample(range(1, 129), threshold + more)
    shares = split(secret, threshold=threshold, points=points)
    assert sorted(shares) == sorted(points)
    held = dict(chance.sample(sorted(shares.items()), threshold))
    assert reconstruct(held, threshold=threshold) == secret
    assert reconstruct(shares, threshold=threshold) == secret


def test_shares_below_the_threshold_fit_every_secret() -> None:
    """Over a small field all secrets can be tried: each has one polynomial through two shares."""
    held = {2: 1, 5: 6}
    for secret in range(7):
        fitting = [
            (first, second)
            for first in range(7)
            for second in range(7)
            if all(evaluate([secret, first, second], x, prime=7) == y for x, y in held.items())
        ]
        assert len(fitting) == 1


def test_a_share_is_uniform_whatever_the_secret() -> None:
    for secret in (0, 6):
        drawn = [split(secret, threshold=2, points=[1, 2], prime=7)[1] for _ in range(3500)]
        counts = [drawn.count(value) for value in range(7)]
        # 22.5 is exceeded once in 1,000 by chi-square with six degrees of freedom.
        assert sum((count - 500) ** 2 / 500 for count in counts) < 30


def test_too_few_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected 3 shares, found 2"):
        reconstruct({1: 1494, 2: 329}, threshold=3, prime=1613)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (-1, 2, [1, 2]),
        (PRIME, 2, [1, 2]),
        (1, 0, [1, 2]),
        (1, 3, [1, 2]),
        (1, 2, [0, 1]),
        (1, 2, [1, PRIME]),
        (1, 2, [3, 3]),
    ],
)
def test_what_cannot_be_shared_is_refused(secret: int, threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        split(secret, threshold=threshold, points=points)
