"""What the first revision really kept, against the worst case computed by brute force.

In the worst case all of it happens in one dimension: with the patient, the others' clipped
gradients are +C instead of -C as soon as the patient has moved their crops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from medfl.privacy.accounting.accountant import Charge, epsilon, lifetime_epsilon
from medfl.privacy.accounting.reassessment import affected_steps, real_number_bound, reassess
from medfl.privacy.accounting.tradeoff import gaussian_epsilon
from medfl.privacy.ledger.ledger import Ledger, Terms
from medfl.privacy.ledger.spending import Record
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.mechanism import Mechanism

Density = npt.NDArray[np.float64]

DELTA = 1e-3


def mechanism(**changes: Any) -> Mechanism:
    values: dict[str, Any] = {
        "sampling_prob": 0.3,
        "noise_multiplier": 2.0,
        "clip_norm": 1.0,
        "clipping": "fixed",
        "local_steps": 1,
        "declared_patients": 3,
        "revision": 1,
    }
    return Mechanism(**{**values, **changes})


def record(steps: int = 5, *, run: str = "first", digest: str = "ab", **changes: Any) -> Record:
    charge = Charge(mechanism=mechanism(**changes), steps=steps)
    return Record(study="gliomas", run=run, message_id=f"{run}-1", charge=charge, digest=digest)


def worst_case(n: int, q: float, sigma: float, *, rounds: int, steps: int) -> tuple[Density, ...]:
    """Probabilities of what is released with and without the patient, in one or two steps."""
    value = np.linspace(-n - 9 * sigma, n + 9 * sigma, 1601)
    others = binom.pmf(np.arange(n), n - 1, q)

    def step(sums: Density) -> Density:
        mixture = others @ norm.pdf(value, sums[:, None], sigma)
        return np.asarray(mixture / mixture.sum())

    m = np.arange(n)
    still, drawn, moved = step(-m), step(m + 1), step(m)  # without, drawn now, drawn before
    if (rounds, steps) == (1, 1):
        return (1 - q) * still + q * drawn, still
    if steps == 1:
        once = (1 - q) * still + q * drawn
        return np.outer(once, once), np.outer(still, still)
    return (
        (1 - q) ** 2 * np.outer(still, still)
        + (1 - q) * q * np.outer(still, drawn)
        + q * (1 - q) * np.outer(drawn, moved)
        + q * q * np.outer(drawn, drawn)
    ), np.outer(still, still)


def exact_delta(with_patient: Density, without: Density, *, at: float) -> float:
    factor = math.exp(at)
    return max(
        float(np.maximum(with_patient - factor * without, 0).sum()),
        float(np.maximum(without - factor * with_patient, 0).sum()),
    )


@pytest.mark.parametrize(
    ("n", "q", "sigma", "rounds", "steps"),
    [
        (2, 0.3, 1.3, 1, 1),
        (3, 0.3, 2.0, 2, 1),
        (3, 0.3, 2.0, 1, 2),
        (5, 0.1, 4.0, 1, 2),
        (12, 0.3, 6.0, 1, 2),
    ],
)
def test_the_stated_epsilon_was_too_small_and_the_bound_holds(
    n: int, q: float, sigma: float, rounds: int, steps: int
) -> None:
    worst = worst_case(n, q, sigma, rounds=rounds, steps=steps)
    charge = Charge(
        mechanism=mechanism(
            sampling_prob=q, noise_multiplier=sigma, declared_patients=n, local_steps=steps
        ),
        steps=rounds * steps,
    )
    stated = epsilon([charge], delta=DELTA)
    bound = real_number_bound([charge], stated=stated, delta=DELTA)
    assert bound is not None
    assert exact_delta(*worst, at=stated) > 10 * DELTA
    assert exact_delta(*worst, at=bound) <= DELTA


@pytest.mark.parametrize(("rounds", "steps"), [(1, 1), (2, 1), (1, 2)])
def test_where_everybody_is_always_drawn_the_bound_is_the_worst_case_itself(
    rounds: int, steps: int
) -> None:
    with_patient, without = worst_case(3, 1.0, 4.0, rounds=rounds, steps=steps)
    charge = Charge(
        mechanism=mechanism(sampling_prob=1.0, noise_multiplier=4.0, local_steps=steps),
        steps=rounds * steps,
    )
    found = real_number_bound([charge], stated=0.1, delta=DELTA)
    exact = brentq(lambda e: exact_delta(with_patient, without, at=e) - DELTA, 0, 30)
    assert found == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("q", "rounds", "steps", "n"),
    [(0.05, 30, 1, 6), (0.05, 10, 5, 6), (0.2, 40, 2, 30), (0.02, 20, 100, 1000)],
)
def test_draws_that_are_called_unusual_are_paid_for(
    q: float, rounds: int, steps: int, n: int
) -> None:
    """The mean over simulated draws of the delta that is exact for each of them."""
    delta, sigma = 0.05, 40.0
    draws = min(20_000, 2_000_000 // (rounds * steps))
    found = real_number_bound(
        [
            Charge(
                mechanism=mechanism(
                    sampling_prob=q, noise_multiplier=sigma, declared_patients=n, local_steps=steps
                ),
                steps=rounds * steps,
            )
        ],
        stated=0.0,
        delta=delta,
    )
    generator = np.random.default_rng(1)
    drawn = generator.random((draws, rounds, steps)) < q
    others = generator.binomial(n - 1, q, size=drawn.shape)
    moves = np.logical_or.accumulate(drawn, axis=2)
    mu = np.sqrt((((drawn + 2 * others) * moves / sigma) ** 2).sum(axis=(1, 2)))
    mu = np.maximum(mu, 1e-9)
    assert found is not None
    deltas = norm.cdf(mu / 2 - found / mu) - np.exp(found + norm.logcdf(-mu / 2 - found / mu))
    assert deltas.mean() <= delta
    # ... and leaving them out is worth it: the bound for all draws is a good deal larger.
    largest = math.sqrt(rounds * steps) * (2 * n - 1) / sigma
    assert found < 0.8 * gaussian_epsilon(largest, delta=delta)


@pytest.mark.parametrize("changes", [{"noise_multiplier": 0.0}, {"noise_origin": "seeded"}])
def test_without_secret_noise_there_is_no_bound(changes: dict[str, Any]) -> None:
    found = reassess([record(), record(**changes)], budget=8.0, delta=DELTA)
    assert found.bound is None
    assert math.isinf(found.stated) == ("noise_multiplier" in changes)


def test_a_patient_without_others_moves_nobody() -> None:
    alone = [record(declared_patients=1), record(declared_patients=1, run="second")]
    found = reassess(alone, budget=8.0, delta=DELTA)
    assert found.bound == found.stated > 0
    together = reassess([*alone, record()], budget=8.0, delta=DELTA)
    assert together.bound is not None
    assert together.bound > 2 * together.stated


def test_a_hospital_of_36_gets_a_number_that_says_what_it_is_worth() -> None:
    charge = record(40, declared_patients=36, noise_multiplier=1.3, local_steps=4).charge
    found = real_number_bound([charge], stated=8.9, delta=1e-5)
    assert found is not None
    assert 1_000 < found < 60_000


def test_only_charges_of_the_first_revision_are_affected() -> None:
    charged = [record(5), record(7, revision=2), record(11, run="second", digest="")]
    found = reassess(charged, budget=8.0, delta=DELTA)
    assert (found.steps, affected_steps(charged), found.released) == (16, 16, 5)
    assert found.runs == (("gliomas", "first"), ("gliomas", "second"))
    kept = [[charged[0].charge], [charged[2].charge]]
    assert found.stated == lifetime_epsilon(kept, delta=DELTA, budget=8.0)


def test_a_ledger_of_this_version_has_nothing_to_say() -> None:
    found = reassess([record(revision=2)], budget=8.0, delta=DELTA)
    assert (found.steps, found.runs, found.stated, found.bound) == (0, (), 0.0, 0.0)


@pytest.fixture
def old_ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger that medfl 0.1 has charged twice, and released once; it has no witness."""
    folder = tmp_path / "ledger"
    terms = Terms(cohort="DU", epsilon=8.0, delta=1e-5, purpose="hospital")
    mechanism_then = mechanism(local_steps=5, declared_patients=20).to_dict()
    del mechanism_then["revision"]
    store = LedgerStore.create(folder, kind="init", content=asdict(terms))
    with store.writing():
        for number in (1, 2):
            content = {"study": "gliomas", "run": "first", "message_id": str(number), "steps": 5}
            store.append("charge", content | {"mechanism": mechanism_then})
        store.append("release", {"charge": 2, "digest": "ab"})
    store.close()
    with Ledger.open(folder) as ledger:
        yield ledger


def test_a_ledger_written_before_there_were_revisions_shows_itself(old_ledger: Ledger) -> None:
    found = old_ledger.reassess()
    assert (found.steps, found.released, found.delta) == (10, 5, 1e-5)
    assert found.stated == old_ledger.spent().epsilon
    assert found.bound is not None
    assert found.bound > 100 * found.stated


@pytest.mark.parametrize("delta", [0.3, 1e-5])
@pytest.mark.parametrize("mu", [0.05, 1.0, 40.0])
def test_gaussian_epsilon_solves_balle_and_wang(mu: float, delta: float) -> None:
    found = gaussian_epsilon(mu, delta=delta)
    largest = 650.0 if mu < 20 else 1500.0

    def delta_at(e: float) -> float:
        """Of N(mu, 1) against N(0, 1): where the loss is above e, the excess of the one."""
        start = e / mu + mu / 2
        return float(norm.sf(start, loc=mu) - math.exp(e + norm.logsf(start)))

    if found == 0:
        assert delta_at(0.0) <= delta
    else:
        assert found == pytest.approx(brentq(lambda e: delta_at(e) - delta, 0, largest), rel=1e-6)


def test_gaussian_epsilon_at_the_ends() -> None:
    assert gaussian_epsilon(0.0, delta=1e-5) == 0.0
    assert math.isinf(gaussian_epsilon(math.inf, delta=1e-5))
    # The shorter formula of a very large mu takes over without a jump.
    below, above = (gaussian_epsilon(mu, delta=1e-5) for mu in (9_999.999, 10_000.001))
    assert 0 < above - below < 30
    with pytest.raises(ValueError, match="Expected mu >= 0"):
        gaussian_epsilon(math.nan, delta=1e-5)
