"""`Figure`: a measured number beside the promised one, and how far chance alone may part them.

Every bound is a quantile of what a right engine shows. All of them together raise a false alarm
with a chance of `FALSE_ALARM` at most: each figure gets an equal share of it, and divides its share
by the number of its comparisons (Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scipy.stats import beta, chi2

FALSE_ALARM = 1e-4
"""Chance that a right engine fails the mechanism test."""

_FIGURES = 30  # at least as many as there are, so that the shares do not add up to more
SHARE = FALSE_ALARM / _FIGURES
"""Chance that a right engine fails one figure."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure beside the promised one.

    Attributes:
        name: What was measured, see `medfl.reporting.audit_words`.
        found: The estimate.
        promised: By the mechanism.
        at_least: Less than this breaks the promise; minus infinity where less is no harm.
        at_most: More than this breaks it; infinity where more is no harm.
    """

    name: str
    found: float
    promised: float
    at_least: float = -math.inf
    at_most: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether the promise and chance explain what was found; never if it is no number."""
        return self.at_least <= self.found <= self.at_most

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types; None for an end that is open."""
        return {
            "name": self.name,
            "found": self.found,
            "promised": self.promised,
            "at_least": None if math.isinf(self.at_least) else self.at_least,
            "at_most": None if math.isinf(self.at_most) else self.at_most,
            "holds": self.holds,
        }


def none_of(name: str, found: float) -> Figure:
    """A count of what must never happen; no chance is involved."""
    return Figure(name=name, found=found, promised=0.0, at_least=0.0, at_most=0.0)


def correlation(name: str, *, largest: float, dimensions: int, comparisons: int) -> Figure:
    """The largest of many correlations between independent vectors.

    Of two independent vectors of which one points anywhere with equal chance, as normal ones do,
    the cosine r has r^2 ~ Beta(1/2, (dimensions - 1) / 2), exactly.

    Args:
        name: What was measured.
        largest: Absolute value.
        dimensions: Of the vectors, less the means that were taken away.
        comparisons: Pairs of vectors.
    """
    rare = SHARE / max(comparisons, 1)
    at_most = math.sqrt(float(beta.isf(rare, 0.5, (dimensions - 1) / 2)))
    return Figure(name=name, found=largest, promised=0.0, at_most=at_most)


def least_std(*, degrees: int, comparisons: int) -> float:
    """The smallest of many standard deviations of unit normal values that chance explains.

    Args:
        degrees: Of freedom, of the one with the fewest.
        comparisons: How many there are.
    """
    return math.sqrt(float(chi2.ppf(SHARE / comparisons, degrees)) / degrees)
