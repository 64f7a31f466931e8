"""A patient at several sites of one secure sum pays for a larger move under one noise."""

from __future__ import annotations

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism

from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.accounting.shared_sum import charge_at_several_sites
from medfl.privacy.mechanism import Mechanism

DELTA, STEPS, Q, SIGMA = 1e-5, 20, 0.3, 3.0
MECHANISM = Mechanism(
    sampling_prob=Q,
    noise_multiplier=SIGMA,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=1,
    declared_patients=20,
    trust="secure",
    honest_sites=3,
)


def test_one_site_is_the_ordinary_charge() -> None:
    charge = charge_at_several_sites(MECHANISM, sites=1, steps=STEPS)
    ordinary = Charge(mechanism=MECHANISM, steps=STEPS)
    assert epsilon([charge], delta=DELTA) == pytest.approx(epsilon([ordinary], delta=DELTA))


@pytest.mark.slow
def test_two_sites_are_counted_for_at_least_their_exact_mixture_and_more_than_apart() -> None:
    """Both draw the patient, one does, or none: shifts of 2, 1 and 0 under one noise."""
    mixture = from_mixture_gaussian_mechanism(
        SIGMA,
        [0.0, 1.0, 2.0],
        [(1 - Q) ** 2, 2 * Q * (1 - Q), Q**2],
        value_discretization_interval=1e-3,
    )
    exact = float(mixture.self_compose(STEPS).get_epsilon_for_delta(DELTA))
    several = epsilon([charge_at_several_sites(MECHANISM, sites=2, steps=STEPS)], delta=DELTA)
    apart = epsilon([Charge(mechanism=MECHANISM, steps=2 * STEPS)], delta=DELTA)
    assert apart < exact <= several


def test_too_little_noise_for_so_many_sites_is_none() -> None:
    charge = charge_at_several_sites(MECHANISM, sites=10_000, steps=STEPS)
    assert not charge.mechanism.is_private
    with pytest.raises(ValueError, match="sites >= 1"):
        charge_at_several_sites(MECHANISM, sites=0, steps=STEPS)
