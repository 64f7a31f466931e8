"""Shamir's secret sharing (CACM 1979) over a prime field.

A secret is the constant term of a random polynomial of degree t - 1; a share is its value at one
point. Any t shares determine the polynomial, and t - 1 of them fit every secret equally well. Fewer
than t shares, or a wrong one, would give a wrong secret without a word: callers count the shares,
compare each with the hash that its dealer signed, and the secret with a commitment.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that 32 bytes are one element."""

SHARE_BYTES = 33


def split(
    secret: int, *, threshold: int, points: Iterable[int], prime: int = PRIME
) -> dict[int, int]:
    """Share a secret.

    Args:
        secret: From 0 to prime - 1.
        threshold: Shares that it takes to get the secret back.
        points: Different numbers from 1 to prime - 1, one for every share.
        prime: The field's size.

    Returns:
        The share of every point.

    Raises:
        ValueError: If a number is out of range, or if the points are too few.
    """
    places = set(points)
    if not 0 <= secret < prime:
        raise ValueError("Expected a secret from the field, found a larger number.")
    if not all(1 <= point < prime for point in places):
        raise ValueError("Expected points from 1 to prime - 1, found others.")
    if not 1 <= threshold <= len(places):
        raise ValueError(f"Expected a threshold of 1 to {len(places)}, found {threshold}.")
    coefficients = [secret, *(secrets.randbelow(prime) for _ in range(threshold - 1))]
    return {point: evaluate(coefficients, point, prime=prime) for point in sorted(places)}


def reconstruct(shares: Mapping[int, int], *, threshold: int, prime: int = PRIME) -> int:
    """The secret of `threshold` or more shares; only that many are used.

    Raises:
        ValueError: If there are fewer.
    """
    if len(shares) < threshold:
        raise ValueError(f"Expected {threshold} shares, found {len(shares)}.")
    points = sorted(shares)[:threshold]
    secret = 0
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % prime
                below = below * (other - point) % prime
        secret += shares[point] * above * pow(below, -1, prime)
    return secret % prime


def evaluate(coefficients: Sequence[int], point: int, *, prime: int = PRIME) -> int:
    """A polynomial's value; the constant term comes first (Horner)."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value
