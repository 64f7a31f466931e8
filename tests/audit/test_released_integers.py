"""What a release consists of, against arithmetic with fractions and struct."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest

from medfl.audit.released_integers import read_integers
from medfl.privacy.mechanism import Mechanism

LEARNING_RATE = 0.1


def mechanism(*, declared: int = 5) -> Mechanism:
    return Mechanism(
        sampling_prob=0.25,
        noise_multiplier=0.7,
        clip_norm=0.5,
        clipping="fixed",
        local_steps=1,
        declared_patients=declared,
    )


def float32(value: Fraction) -> Fraction:
    """The nearest float32, by way of its bytes."""
    return Fraction(*struct.unpack("f", struct.pack("f", float(value)))[0].as_integer_ratio())


def release(integer: int, *, of: Mechanism) -> float:
    """One plain gradient step from a weight of zero, each operation rounded to float32."""
    total = float32(Fraction(integer) * Fraction(of.grid))
    mean = float32(total / float32(Fraction(of.divisor)))
    return float(float32(float32(Fraction(-LEARNING_RATE)) * mean))


@pytest.mark.parametrize("declared", [4, 5, 37])
def test_integers_are_read_back(declared: int) -> None:
    of = mechanism(declared=declared)
    generator = np.random.default_rng(declared)
    integers = [0, 1, -1, 2**22 - 1, -(2**22), *generator.integers(-(2**22), 2**22, size=2000)]
    released = np.array([release(int(k), of=of) for k in integers], dtype=np.float32)
    read = read_integers(released, mechanism=of, learning_rate=LEARNING_RATE)
    assert read.off_grid == 0
    np.testing.assert_array_equal(read.integers, integers)


def test_large_integers_lie_on_the_grid_as_well() -> None:
    of = mechanism()
    integers = np.random.default_rng(1).integers(2**22, 2**23, size=2000)
    released = np.array([release(int(k), of=of) for k in integers], dtype=np.float32)
    read = read_integers(released, mechanism=of, learning_rate=LEARNING_RATE)
    assert read.off_grid == 0
    assert np.abs(read.integers - integers).max() <= 1


@pytest.mark.parametrize("change", [-1, 1])
def test_a_changed_last_bit_is_no_integers(change: int) -> None:
    of = mechanism()
    integers = np.random.default_rng(2).integers(-(2**20), 2**20, size=500)
    released = np.array([release(int(k), of=of) for k in integers], dtype=np.float32)
    released.view(np.int32)[:] += change
    read = read_integers(released, mechanism=of, learning_rate=LEARNING_RATE)
    assert read.off_grid == 500


def test_numbers_between_the_grids_and_no_numbers_are_seen() -> None:
    of = mechanism()
    released = np.array([release(1000, of=of) * 1.0003, np.nan, np.inf, 0.0], dtype=np.float32)
    read = read_integers(released, mechanism=of, learning_rate=LEARNING_RATE)
    assert read.off_grid == 3
