import math

import numpy as np
import pytest
import torch

from medfl.privacy.noise import SecureNormal
from medfl.privacy.sampling import poisson_draw

PATIENTS = 12
DRAWS = 20_000
Q = 0.3


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """Who was drawn, shape (draws, patients)."""
    source = SecureNormal.seeded("sampling", 1)
    table = np.zeros((DRAWS, PATIENTS), dtype=bool)
    for row in table:
        row[poisson_draw(population=PATIENTS, probability=Q, source=source)] = True
    return table


def _close(value: np.ndarray, probability: float) -> bool:
    error = 5 * math.sqrt(probability * (1 - probability) / DRAWS)
    return bool(np.all(np.abs(value - probability) < error))


def test_every_patient_is_drawn_with_probability_q(drawn: np.ndarray) -> None:
    assert _close(drawn.mean(axis=0), Q)


def test_every_pair_is_drawn_with_probability_q_squared(drawn: np.ndarray) -> None:
    pairs = drawn.T.astype(float) @ drawn / DRAWS
    assert _close(pairs[~np.eye(PATIENTS, dtype=bool)], Q * Q)


def test_consecutive_draws_are_independent(drawn: np.ndarray) -> None:
    both = (drawn[:-1] & drawn[1:]).mean(axis=0)
    assert _close(both, Q * Q)


def test_the_batch_size_varies_as_a_binomial(drawn: np.ndarray) -> None:
    sizes = drawn.sum(axis=1)
    variance = PATIENTS * Q * (1 - Q)
    assert sizes.mean() == pytest.approx(PATIENTS * Q, abs=5 * math.sqrt(variance / DRAWS))
    assert sizes.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / DRAWS))


def test_empty_draws_occur_as_often_as_they_should(drawn: np.ndarray) -> None:
    assert _close(np.asarray((drawn.sum(axis=1) == 0).mean()), (1 - Q) ** PATIENTS)


def test_indices_are_ascending_whole_numbers() -> None:
    source = SecureNormal.from_operating_system()
    indices = poisson_draw(population=1000, probability=0.5, source=source)
    assert indices == sorted(set(indices))
    assert {type(index) for index in indices} == {int}
    assert 0 <= indices[0] <= indices[-1] < 1000


def test_probability_one_draws_everybody() -> None:
    source = SecureNormal.from_operating_system()
    assert poisson_draw(population=50, probability=1.0, source=source) == list(range(50))


def test_a_global_seed_does_not_repeat_a_draw() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        source = SecureNormal.from_operating_system()
        draws.append(poisson_draw(population=2000, probability=0.5, source=source))
    assert draws[0] != draws[1]


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.5, math.nan])
def test_an_impossible_probability_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="Expected probability"):
        poisson_draw(
            population=3, probability=probability, source=SecureNormal.from_operating_system()
        )


def test_nobody_is_drawn_from_nobody() -> None:
    source = SecureNormal.from_operating_system()
    assert poisson_draw(population=0, probability=0.5, source=source) == []


@pytest.mark.parametrize("population", [-1, 2.0, True])
def test_an_impossible_population_is_refused(population: object) -> None:
    with pytest.raises(ValueError, match="Expected a whole population"):
        poisson_draw(
            population=population,
            probability=0.5,
            source=SecureNormal.from_operating_system(),
        )
