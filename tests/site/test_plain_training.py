"""Training without noise: what a recipe's average and its variation of crops change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfl.data.patient_store import PatientStore
from medfl.protocol.study_model import model_spec
from medfl.site.plain_training import Recipe, train_plainly
from medfl.study.pretraining import synthetic_patients

STEPS = 4


@pytest.fixture(scope="module")
def store(shared_federation: Any, tmp_path_factory: pytest.TempPathFactory) -> PatientStore:
    section = {"shape": [20, 20, 16], "spacing": [9.0, 9.0, 10.0], "skull_stripped": True}
    study = shared_federation.study(synthetic=section)
    folder = tmp_path_factory.mktemp("plain")
    return synthetic_patients(study, study.synthetic, count=2, folder=folder)


@pytest.fixture
def network(shared_federation: Any) -> Iterator[nn.Module]:
    torch.set_num_threads(1)
    yield model_spec(shared_federation.study()).build(seed=3)


def trained(network: nn.Module, store: PatientStore, **settings: Any) -> list[list[Tensor]]:
    """The weights after every step, and the outcome."""

    def weights() -> list[Tensor]:
        return [value.detach().clone() for value in network.parameters()]

    seen = [weights()]
    recipe = Recipe(
        steps=STEPS, learning_rate=0.05, crop_size=(16, 16, 16), crops_per_patient=1, **settings
    )
    train_plainly(
        network, store, among=(0, 1), recipe=recipe, advance=lambda *_: seen.append(weights())
    )
    return [*seen, weights()]


def test_the_last_weights_are_the_outcome_without_an_average(
    network: nn.Module, store: PatientStore
) -> None:
    *_, last, outcome = trained(network, store)
    assert all(torch.equal(one, other) for one, other in zip(last, outcome, strict=True))


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_outcome_is_the_average_that_forgets_the_beginning(
    decay: float, network: nn.Module, store: PatientStore
) -> None:
    *path, outcome = trained(network, store, ema_decay=decay)
    assert len(path) == STEPS + 1
    expected = [value.double() for value in path[0]]
    for step, weights in enumerate(path[1:], start=1):
        now = min(decay, (1 + step) / (10 + step))
        expected = [now * e + (1 - now) * w for e, w in zip(expected, weights, strict=True)]
    for found, wanted in zip(outcome, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)


def test_an_average_changes_no_step_and_randomised_crops_do(
    network: nn.Module, store: PatientStore
) -> None:
    fresh = [value.detach().clone() for value in network.parameters()]

    def again(**settings: Any) -> list[Tensor]:
        with torch.no_grad():
            for value, first in zip(network.parameters(), fresh, strict=True):
                value.copy_(first)
        return trained(network, store, **settings)[-2]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    plain = again()
    assert same(again(ema_decay=0.9), plain)
    randomised = again(randomise=True)
    assert not same(randomised, plain)
    assert same(again(randomise=True), randomised)


def test_a_study_asks_for_both(shared_federation: Any, tmp_path: Path) -> None:
    from medfl.study.pretraining import initial_weights

    section = {
        "shape": [20, 20, 16],
        "spacing": [9.0, 9.0, 10.0],
        "skull_stripped": True,
        "pretraining_patients": 2,
        "pretraining_steps": 2,
    }
    made = [
        initial_weights(
            shared_federation.study(synthetic={**section, **asked}),
            threads=1,
            advance=lambda *_: None,
        )
        for asked in ({}, {"randomise": True}, {"ema_decay": 0.5})
    ]
    first = next(iter(made[0]))
    assert len({made[n][first].numpy().tobytes() for n in range(3)}) == 3
