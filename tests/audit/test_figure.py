"""Bounds of figures, against simulations and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from medfl.audit.figure import SHARE, correlation, least_std, none_of


@pytest.mark.parametrize(("dimensions", "comparisons"), [(12, 1), (200, 50), (3000, 10**6)])
def test_the_bound_of_a_correlation_is_students(dimensions: int, comparisons: int) -> None:
    at_most = correlation("mu", largest=0.0, dimensions=dimensions, comparisons=comparisons).at_most
    # The cosine r of independent vectors gives r sqrt(n - 1) / sqrt(1 - r^2) of n - 1 degrees.
    degrees = dimensions - 1
    statistic = at_most * math.sqrt(degrees / (1 - at_most**2))
    assert 2 * t.sf(statistic, degrees) == pytest.approx(SHARE / comparisons, rel=1e-6)


def test_many_degrees_have_a_normal_standard_deviation() -> None:
    degrees = 10**6
    expected = 1 + norm.ppf(SHARE / 10) / math.sqrt(2 * degrees)
    assert least_std(degrees=degrees, comparisons=10) == pytest.approx(expected, abs=2e-5)


def test_the_smallest_of_many_standard_deviations_stays_above_its_bound() -> None:
    values = np.random.default_rng(3).standard_normal((2000, 50))
    smallest = math.sqrt(float(np.square(values).mean(axis=1).min()))
    assert smallest > least_std(degrees=50, comparisons=2000) > smallest - 0.25


@pytest.mark.parametrize(("found", "holds"), [(0.0, True), (1.0, False), (math.nan, False)])
def test_what_must_never_happen_may_not_happen_once(found: float, holds: bool) -> None:
    assert none_of("off_grid", found).holds is holds
