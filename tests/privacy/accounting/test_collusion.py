"""What a secure sum promises when the server does not come alone."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from medfl.config import StudyConfig
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.accounting.collusion import (
    MOST_COUNTS,
    collusion_counts,
    epsilon_against,
    remaining_shares,
)
from medfl.privacy.mechanism import MAX_NOISE_MULTIPLIER, Mechanism
from medfl.protocol.secure_round import Member, round_terms, sum_threshold
from tests.federations import STUDY, changed

DELTA = 1e-5
STEPS = 20


def mechanism(**changes: Any) -> Mechanism:
    """Of a secure sum of three guaranteed shares."""
    values: dict[str, Any] = {
        "sampling_prob": 0.3,
        "noise_multiplier": 2.0,
        "clip_norm": 1.0,
        "clipping": "fixed",
        "local_steps": 1,
        "declared_patients": 20,
        "trust": "secure",
        "honest_sites": 3,
    }
    return Mechanism(**(values | changes))


def against(colluding_sites: int, *, sites: int = 4, threshold: int = 3, **changes: Any) -> float:
    charges = [Charge(mechanism=mechanism(**changes), steps=STEPS)]
    return epsilon_against(
        charges,
        sites=sites,
        threshold=threshold,
        colluding_sites=colluding_sites,
        delta=DELTA,
    )


def oracle(sigma: float) -> float:
    """Epsilon of dp-accounting for the plain mechanism."""
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    step = dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(sigma))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, STEPS))
    return float(accountant.get_epsilon(DELTA))


def study(*, min_sites: int, colluding_sites: int) -> StudyConfig:
    changes = {
        "privacy": {"trust": "secure", "colluding_sites": colluding_sites},
        "aggregation": {"min_sites": min_sites},
    }
    return StudyConfig.model_validate_json(json.dumps(changed(STUDY, changes)))


def sound() -> list[tuple[int, int, int]]:
    """K, min_sites and tolerated sites of every small study that can be run."""
    return [
        (sites, least, tolerated)
        for sites, least in itertools.product(range(2, 7), range(2, 7))
        for tolerated in range(min(least, sites))
        if max(least, (sites + tolerated) // 2 + 1) <= sites
    ]


@pytest.mark.parametrize(("sites", "least", "tolerated"), sound())
def test_the_threshold_is_the_one_that_site_and_server_derive(
    sites: int, least: int, tolerated: int, event_keys: list[str]
) -> None:
    proposed = study(min_sites=least, colluding_sites=tolerated)
    terms = round_terms(
        proposed,
        run="run",
        round_number=1,
        members={
            f"site-{number}": Member(event_key=event_keys[number], declared_patients=20)
            for number in range(sites)
        },
        mechanism=mechanism(honest_sites=proposed.honest_sites),
        model_digest="0" * 64,
        length=10,
    )
    assert sum_threshold(proposed, sites=sites) == terms.threshold
    assert terms.threshold == max(least, (sites + tolerated) // 2 + 1)


def test_more_sites_than_there_are_cannot_be_asked_to_stay() -> None:
    with pytest.raises(ValueError, match="4 sites or more in a secure sum, found 3"):
        sum_threshold(study(min_sites=4, colluding_sites=0), sites=3)
    with pytest.raises(ValueError, match="at most 2 sites"):
        sum_threshold(study(min_sites=3, colluding_sites=2), sites=2)


@pytest.mark.parametrize(("sites", "least", "tolerated"), sound())
def test_shares_are_never_fewer_than_planned_for_tolerated_sites_and_never_grow_with_more(
    sites: int, least: int, tolerated: int
) -> None:
    threshold = sum_threshold(study(min_sites=least, colluding_sites=tolerated), sites=sites)
    shares = [
        remaining_shares(sites=sites, threshold=threshold, colluding_sites=count)
        for count in range(sites)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[tolerated] >= least - tolerated
    assert min(shares) >= 1
    # From where on K + c signatures are enough for two sets of survivors.
    for count, left in enumerate(shares):
        assert left == (threshold - count if 2 * threshold > sites + count else 1)


def test_epsilon_is_that_of_the_noise_which_remains() -> None:
    # 4 sites of which 3 have to stay: alone the server faces 3 shares, with one site 2, and two
    # sites break the protocol.
    expected = [oracle(2.0 * math.sqrt(shares / 3)) for shares in (3, 2, 1, 1)]
    assert [against(count) for count in range(4)] == pytest.approx(expected, rel=1e-6)


def test_the_tolerated_sites_cost_at_most_what_was_planned() -> None:
    planned = epsilon([Charge(mechanism=mechanism(), steps=STEPS)], delta=DELTA)
    assert against(0) == planned
    # All 4 stay, 1 is tolerated: h = 3 = t - c.
    assert against(1, threshold=4) == planned
    assert against(0, threshold=4) < planned


def test_a_sites_own_share_alone_is_the_noise_over_the_root_of_the_shares() -> None:
    assert against(3) == pytest.approx(oracle(2.0 / math.sqrt(3)), rel=1e-6)


def test_local_noise_protects_from_any_number_of_sites() -> None:
    local = {"trust": "local", "honest_sites": 1}
    alone = epsilon([Charge(mechanism=mechanism(**local), steps=STEPS)], delta=DELTA)
    assert {against(count, **local) for count in range(4)} == {alone}


def test_no_noise_is_no_promise_and_what_no_mechanism_can_have_is_bounded_from_above() -> None:
    assert math.isinf(against(0, noise_multiplier=0.0))
    assert math.isinf(against(3, noise_multiplier=1e-3))  # a share below the smallest noise
    most = against(0, sites=8, threshold=8, noise_multiplier=MAX_NOISE_MULTIPLIER)
    assert 0.0 <= most < 1e-3


@pytest.mark.parametrize("colluding_sites", [-1, 4])
def test_a_number_of_sites_that_cannot_be_is_refused(colluding_sites: int) -> None:
    with pytest.raises(ValueError, match=r"colluding_sites in \[0, 3\]"):
        against(colluding_sites)
    with pytest.raises(ValueError, match=r"threshold in \[1, 4\]"):
        against(0, threshold=5)


def test_few_sites_are_all_counted_and_many_where_something_changes() -> None:
    assert collusion_counts(sites=4, threshold=3, tolerated=0) == (0, 1, 2, 3)
    # 20 sites of which 15 have to stay: 10 more could sign two sets.
    assert collusion_counts(sites=20, threshold=15, tolerated=3) == (0, 1, 3, 9, 10, 19)
    # Where all have to stay, the protocol never breaks.
    assert collusion_counts(sites=20, threshold=20, tolerated=0) == (0, 1, 19)
    for sites, least, tolerated in sound():
        threshold = sum_threshold(study(min_sites=least, colluding_sites=tolerated), sites=sites)
        counts = collusion_counts(sites=sites, threshold=threshold, tolerated=tolerated)
        assert len(counts) <= MOST_COUNTS and tolerated in counts and sites - 1 in counts


@pytest.fixture(scope="module")
def event_keys() -> list[str]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    keys = [Ed25519PrivateKey.generate().public_key() for _ in range(8)]
    return [key.public_bytes_raw().hex() for key in keys]
