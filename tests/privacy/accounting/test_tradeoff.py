import math

import pytest
from scipy import stats

from medfl.privacy.accounting.charges import Charge
from medfl.privacy.accounting.tradeoff import distinguishability
from medfl.privacy.mechanism import Mechanism


def charge(q: float, sigma: float, steps: int) -> Charge:
    mechanism = Mechanism(
        sampling_prob=q,
        noise_multiplier=sigma,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=1,
        declared_patients=20,
    )
    return Charge(mechanism=mechanism, steps=steps)


# The design's table for the plain Gaussian mechanism, at epsilon 1, 2 and 8.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mu", "advantage", "tpr"), [(0.27, 0.11, 0.020), (0.50, 0.20, 0.034), (1.67, 0.60, 0.255)]
)
def test_the_gaussian_mechanism_gets_its_published_meaning(
    mu: float, advantage: float, tpr: float
) -> None:
    found = distinguishability([charge(1.0, 1 / mu, 1)])
    assert found.mu == pytest.approx(mu, abs=1e-3)
    assert found.membership_advantage == pytest.approx(advantage, abs=0.005)
    assert found.membership_advantage == pytest.approx(2 * stats.norm.cdf(mu / 2) - 1, abs=1e-3)
    assert found.tpr_at_1_percent_fpr == pytest.approx(tpr, abs=1e-3)
    exact = stats.norm.cdf(stats.norm.ppf(0.01) + mu)
    assert found.tpr_at_1_percent_fpr == pytest.approx(exact, abs=1e-3)


@pytest.mark.slow
def test_mu_is_above_the_central_limit_value_which_is_no_bound() -> None:
    q, sigma, steps = 0.05, 0.6, 50
    found = distinguishability([charge(q, sigma, steps)])
    central_limit = q * math.sqrt(steps * (math.exp(1 / sigma**2) - 1))
    assert found.mu > central_limit


@pytest.mark.slow
def test_mu_bounds_the_other_two() -> None:
    found = distinguishability([charge(0.3, 2.0, 50)])
    assert found.membership_advantage <= 2 * stats.norm.cdf(found.mu / 2) - 1
    assert found.tpr_at_1_percent_fpr <= stats.norm.cdf(stats.norm.ppf(0.01) + found.mu)
    assert found.tpr_at_1_percent_fpr > 0.01


def test_nothing_released_tells_nothing() -> None:
    found = distinguishability([])
    assert found.mu == 0
    assert found.membership_advantage == 0
    assert found.tpr_at_1_percent_fpr == pytest.approx(0.01)


@pytest.mark.parametrize("sigma", [0.0, 0.01])
def test_without_noise_or_with_next_to_none_everything_may_be_told(sigma: float) -> None:
    found = distinguishability([charge(0.3, sigma, 100)])
    assert found.mu == math.inf
    assert found.membership_advantage == 1
    assert found.tpr_at_1_percent_fpr == 1
