"""Whether patients are drawn as the accounting assumes: each by a coin of their own, every step.

Right shares are not enough. Batches of a fixed size, shuffled epochs and a coin for everybody draw
each patient equally often, and have less privacy than independent coins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom, gamma

from medfl.audit.figure import SHARE, Figure, none_of
from medfl.audit.probe import BoolArray

LAGS = (1, 2, 3, 4)
"""Steps between two draws that are compared."""


def draw_figures(
    took_part: BoolArray, *, batches: Sequence[Sequence[int]], probability: float, steps: int
) -> tuple[Figure, ...]:
    """Everything that is asked of draws.

    Args:
        took_part: Shape (rounds x steps, patients).
        batches: The same as lists, in which a patient may occur twice.
        probability: q, promised to everybody.
        steps: Of one round.
    """
    return (
        _share(took_part, probability),
        *_extremes(took_part, probability),
        _pairs(took_part, probability),
        _batch_sizes(took_part, probability),
        none_of("drawn_twice", sum(len(batch) - len(set(batch)) for batch in batches)),
        _from_step_to_step(took_part, probability, lags=(*LAGS, steps)),
    )


def _share(took_part: BoolArray, q: float) -> Figure:
    number = took_part.size
    return Figure(
        name="drawn_share",
        found=float(took_part.mean()),
        promised=q,
        at_least=float(binom.ppf(SHARE / 2, number, q)) / number,
        at_most=float(binom.isf(SHARE / 2, number, q)) / number,
    )


def _extremes(took_part: BoolArray, q: float) -> tuple[Figure, Figure]:
    """The patient drawn least often, and the one drawn most often."""
    steps, population = took_part.shape
    shares = took_part.mean(axis=0)
    least = float(binom.ppf(SHARE / population, steps, q)) / steps
    most = float(binom.isf(SHARE / population, steps, q)) / steps
    return (
        Figure(name="drawn_least", found=float(shares.min()), promised=q, at_least=least),
        Figure(name="drawn_most", found=float(shares.max()), promised=q, at_most=most),
    )


def _pairs(took_part: BoolArray, q: float) -> Figure:
    """How often two patients are drawn together, for the pair that strays furthest from q^2."""
    steps, population = took_part.shape
    together = (took_part.T.astype(np.int64) @ took_part.astype(np.int64)) / steps
    shares = together[np.triu_indices(population, k=1)]
    rare = SHARE / (2 * len(shares))
    return Figure(
        name="drawn_together",
        found=float(shares[np.argmax(np.abs(shares - q**2))]),
        promised=q**2,
        at_least=float(binom.ppf(rare, steps, q**2)) / steps,
        at_most=float(binom.isf(rare, steps, q**2)) / steps,
    )


def _batch_sizes(took_part: BoolArray, q: float) -> Figure:
    """Variance of the batch size over n q (1 - q).

    A squared deviation has the mean v = n q (1 - q) and, with the fourth moment of the binomial
    distribution, the variance v (1 + (2 n - 6) q (1 - q)). Its mean over many steps follows a gamma
    distribution with these two moments closely.
    """
    steps, population = took_part.shape
    variance = population * q * (1 - q)
    squares = np.square(took_part.sum(axis=1) - population * q)
    spread = variance * (1 + (2 * population - 6) * q * (1 - q)) / steps
    law = gamma(variance**2 / spread, scale=spread / variance**2)
    return Figure(
        name="batch_size_variance",
        found=float(squares.mean()) / variance,
        promised=1.0,
        at_least=float(law.ppf(SHARE / 2)),
        at_most=float(law.isf(SHARE / 2)),
    )


def _from_step_to_step(took_part: BoolArray, q: float, *, lags: Sequence[int]) -> Figure:
    """Correlation of a patient's draws some steps apart, and in the same step of the next round.

    Products of centred coins are uncorrelated with each other, so that the mean of N of them has
    the standard error 1 / sqrt(N).
    """
    centred = (took_part - q) / math.sqrt(q * (1 - q))
    found = [float((centred[lag:] * centred[:-lag]).mean()) for lag in lags]
    fewest = centred[max(lags) :].size
    z = float(ndtri(1 - SHARE / (2 * len(lags))))
    return Figure(
        name="drawn_again",
        found=found[int(np.argmax(np.abs(found)))],
        promised=0.0,
        at_least=-z / math.sqrt(fewest),
        at_most=z / math.sqrt(fewest),
    )
