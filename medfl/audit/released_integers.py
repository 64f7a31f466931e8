"""The integers that a release consists of, and whether it consists of anything else.

A released weight that started from zero is -lr k g / L with an integer k, in float32. A server
that asks for weights at zero, as a hostile one may, sees every bit of it. Between two such numbers
there is room for others: a sum that is no multiple of the grid, or a bit that somebody hid in a
mantissa.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfl.privacy.mechanism import Mechanism

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleasedIntegers:
    """What was read from released weights.

    Attributes:
        integers: k of each weight, of the weights' shape; the nearest one where there is none.
        off_grid: How many weights are not what their integer gives, bit for bit.
    """

    integers: Int64Array
    off_grid: int


def read_integers(
    released: Float32Array, *, mechanism: Mechanism, learning_rate: float
) -> ReleasedIntegers:
    """Read the integers of one plain gradient step from zero weights.

    Two roundings to float32 (the quotient and the product) move k by at most |k| 2^-23, so that
    the nearest integer may be the neighbour of the right one beyond 2^22: its neighbours are tried.

    Args:
        released: Weights after the step, float32.
        mechanism: Whose grid and divisor.
        learning_rate: Of the step.
    """
    scale = -mechanism.divisor / (learning_rate * mechanism.grid)
    nearest = np.rint(released.astype(np.float64) * scale)
    nearest = np.where(np.isfinite(nearest), nearest, 0.0)
    found = nearest.copy()
    explained = np.zeros(released.shape, dtype=np.bool_)
    for candidate in (nearest, nearest - 1, nearest + 1):
        expected = _step(candidate, mechanism=mechanism, learning_rate=learning_rate)
        hit = ~explained & (expected == released)
        found[hit] = candidate[hit]
        explained |= hit
    return ReleasedIntegers(integers=found.astype(np.int64), off_grid=int((~explained).sum()))


def _step(
    integers: npt.NDArray[np.float64], *, mechanism: Mechanism, learning_rate: float
) -> Float32Array:
    """What `medfl.privacy.engine` and torch's SGD make of integers, written out in NumPy."""
    gradient = (integers * mechanism.grid).astype(np.float32) / np.float32(mechanism.divisor)
    moved: Float32Array = np.float32(-learning_rate) * gradient
    return moved
