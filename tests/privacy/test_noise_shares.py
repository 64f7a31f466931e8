"""Rounded shares of several sites are as good as one Gaussian, by exact probabilities."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import ndtr

from medfl.errors import PrivacyError
from medfl.privacy.noise_shares import LEAST_SHARE, require_fine_grid

Law = npt.NDArray[np.float64]


def rounded_normal(std: float, *, reach: int) -> Law:
    """Exact probabilities of round(N(0, std^2)) on -reach .. reach."""
    values = np.arange(-reach, reach + 1)
    law: Law = ndtr((values + 0.5) / std) - ndtr((values - 0.5) / std)
    return law


def sum_of(law: Law, *, shares: int) -> Law:
    total = law
    for _ in range(shares - 1):
        total = np.convolve(total, law)
    return total


def profile(first: Law, second: Law, *, epsilons: Law) -> Law:
    """Both hockey-stick divergences' maximum at each epsilon (Balle and Wang 2018)."""
    factors = np.exp(epsilons)[:, None]
    one = np.maximum(first - factors * second, 0).sum(axis=1)
    other = np.maximum(second - factors * first, 0).sum(axis=1)
    return np.maximum(one, other)


def gaussian_profile(std: float, shift: float, *, q: float, epsilons: Law) -> Law:
    """Of the Poisson-subsampled Gaussian mechanism, by integrating over a fine grid."""
    values = np.linspace(-14 * std, 14 * std + shift, 60_001)
    step = values[1] - values[0]
    without = np.exp(-0.5 * (values / std) ** 2) * step / (std * math.sqrt(2 * math.pi))
    moved = np.exp(-0.5 * ((values - shift) / std) ** 2) * step / (std * math.sqrt(2 * math.pi))
    return profile((1 - q) * without + q * moved, without, epsilons=epsilons)


@pytest.mark.parametrize("shares", [2, 3, 4, 7])
@pytest.mark.parametrize("share_std", [4.0, 12.0])
@pytest.mark.parametrize("q", [0.25, 1.0])
def test_the_loss_is_that_of_the_gaussian_mechanism(
    shares: int, share_std: float, q: float
) -> None:
    """A patient moves the total by C in units of the grid, here with sigma = 1.5."""
    std = share_std * math.sqrt(shares)
    shift = round(std / 1.5)
    total = sum_of(rounded_normal(share_std, reach=math.ceil(10 * share_std)), shares=shares)
    without = np.concatenate([total, np.zeros(shift)])
    moved = np.concatenate([np.zeros(shift), total])
    epsilons = np.linspace(0.05, 3.0, 12)
    found = profile((1 - q) * without + q * moved, without, epsilons=epsilons)
    promised = gaussian_profile(std, shift, q=q, epsilons=epsilons)
    # What the quadrature of the promise and float64 leave open.
    assert (found <= promised + 1e-9).all()
    assert found == pytest.approx(promised, abs=2e-3)


def test_shares_finer_than_the_grid_cost_more_than_promised() -> None:
    """The oracle would notice: at a fifth of a unit, rounding takes most of the noise away."""
    total = sum_of(rounded_normal(0.2, reach=6), shares=2)
    epsilons = np.linspace(0.05, 3.0, 12)
    without, moved = np.append(total, 0.0), np.append(0.0, total)
    found = profile(moved, without, epsilons=epsilons)
    promised = gaussian_profile(0.2 * math.sqrt(2), 1, q=1.0, epsilons=epsilons)
    assert (found > promised + 1e-3).any()


def test_given_the_sum_of_the_shares_rounding_moves_with_it() -> None:
    """The heart of the proof: where the sum moves by an integer, so does the total's law.

    Two shares leave one dimension to integrate over. With half a unit each, rounding shows, and the
    bound is large enough to be measured: both laws are within 1 +- eta of one kernel.
    """
    std = 0.5
    points = np.linspace(-8, 8, 80_001)

    def law(total: float) -> dict[int, float]:
        first, second = points, total - points
        weight = np.exp(-0.5 * (first**2 + second**2) / std**2)
        rounded = (np.rint(first) + np.rint(second)).astype(int)
        return {
            int(value): float(weight[rounded == value].sum() / weight.sum())
            for value in np.unique(rounded)
        }

    # The two vectors of the shortest length and all multiples of them; each character counts once.
    eta = 2 * sum(math.exp(-(math.pi**2) * std**2 * k**2) for k in range(1, 5))
    largest = (1 + eta) / (1 - eta)
    seen = []
    for total in (0.1, 0.37, 0.8):
        here, there = law(total), law(total + 1)
        for value, probability in here.items():
            moved = there.get(value + 1, 0.0)
            assert moved <= largest * probability + 1e-4
            assert probability <= largest * moved + 1e-4
            seen.append(max(moved, 1e-9) / max(probability, 1e-9) if probability > 0.01 else 1.0)
    assert max(seen) > 1.3  # with so coarse a grid rounding does show


def test_the_bound_is_beyond_any_delta_for_the_shares_that_are_allowed() -> None:
    shares = 2  # the fewest that are rounded one by one, where the exponent is smallest
    log_eta = math.log(2 * shares) - 2 * math.pi**2 * LEAST_SHARE**2 * (1 - 1 / shares)
    assert log_eta < -17_000 * math.log(10)


@pytest.mark.parametrize("std", [0.0, 63.9, math.nan])
def test_shares_below_the_grid_are_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="64 units"):
        require_fine_grid(std)
    require_fine_grid(64.0)
