"""Whole runs in this process: every strategy works, and equal seeds give equal models."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from medfl.server.progress import Silent

pytestmark = pytest.mark.slow

SITES = ("east", "south")
ONE_ROUND: dict[str, Any] = {"training": {"rounds": 1}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": {"strategy": "fedavg"}},
        {"aggregation": {"strategy": "fedprox"}, "training": {"proximal_mu": 0.5}},
        {"aggregation": {"strategy": "fedavgm", "momentum": 0.5}},
        {"aggregation": {"strategy": "fedadam", "server_learning_rate": 1e-2}},
        {"training": {"optimizer": "adam", "learning_rate": 1e-3}},
        {"privacy": {"clipping": "fixed"}},
    ],
    ids=str,
)
def test_every_choice_of_a_study_trains_to_a_model_of_its_own(
    changes: dict[str, Any], federation: Any
) -> None:
    study = federation.study(**changes)
    finished = federation.run(study, federation.sites(*SITES))
    plain = federation.run(federation.study(seed=9), federation.sites(*SITES), name="plain")
    assert all(value.isfinite().all() for value in finished.weights.values())
    assert not same(finished.weights, plain.weights)


def test_fedprox_stays_nearer_to_the_rounds_start(federation: Any) -> None:
    from safetensors.torch import load_file

    moved = {}
    for mu in (0.0, 1.5):
        study = federation.study(
            aggregation={"strategy": "fedprox"},
            training={"rounds": 1, "local_steps": 4, "proximal_mu": mu},
        )
        finished = federation.run(study, federation.sites(*SITES), name=f"mu {mu}")
        start = load_file(finished.path / "checkpoints" / "initial.safetensors")
        changes = [(finished.weights[name] - start[name]).norm() for name in start]
        moved[mu] = float(torch.stack(changes).norm())
    assert 0 < moved[1.5] < 0.9 * moved[0.0]


def test_equal_seeds_give_equal_models_whatever_the_global_seeds_are(federation: Any) -> None:
    study = federation.study()
    models = []
    for number in (1, 2):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002  the global state is the point
        random.seed(number)
        models.append(federation.run(study, federation.sites(*SITES), name=str(number)).weights)
    assert same(*models)


def test_a_run_leaves_the_global_generators_as_they_were(federation: Any) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    federation.run(federation.study(**ONE_ROUND), federation.sites(*SITES))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_the_order_of_the_site_files_does_not_change_the_model(federation: Any) -> None:
    study = federation.study(**ONE_ROUND)
    one = federation.run(study, federation.sites("east", "north", "south"), name="one")
    other = federation.run(study, federation.sites("south", "north", "east"), name="other")
    assert same(one.weights, other.weights)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"id": "other"}])
def test_another_seed_or_study_gives_other_noise(changes: dict[str, Any], federation: Any) -> None:
    one = federation.run(federation.study(**ONE_ROUND), federation.sites(*SITES), name="one")
    study = federation.study(**ONE_ROUND, **changes)
    other = federation.run(study, federation.sites(*SITES), name="other")
    assert not same(one.weights, other.weights)


def test_noise_from_the_operating_system_never_repeats(federation: Any) -> None:
    study = federation.study(**ONE_ROUND, privacy={"noise": "operating-system"})
    models = [
        federation.run(study, federation.sites(*SITES), name=name).weights for name in ("a", "b")
    ]
    assert not any(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_sites_weigh_as_they_declared(federation: Any) -> None:
    study = federation.study(**ONE_ROUND)
    alone = federation.study(**ONE_ROUND, aggregation={"min_sites": 1})
    weights = {"east": 3.0, "south": 1.0}
    sites = [federation.site(name, weight=weight) for name, weight in weights.items()]
    together = federation.run(study, sites, name="together").weights
    parts = {
        site.name: federation.run(
            alone.model_copy(update={"id": study.id}), [site], name=site.name
        ).weights
        for site in sites
    }
    for name, value in together.items():
        expected = (3 * parts["east"][name].double() + parts["south"][name].double()) / 4
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


class Watched(Silent):
    """Writes down what a person at the terminal is told."""

    def __init__(self) -> None:
        self.story: list[Any] = []

    def stepped(self, site: str, done: int, total: int) -> None:
        self.story.append((site, done, total))

    def round_finished(self, record: Any) -> None:
        self.story.append(record.round)


def test_rounds_are_told_as_they_end(federation: Any) -> None:
    watched = Watched()
    federation.run(federation.study(), federation.sites(*SITES), progress=watched)
    assert watched.story == [1, 2]


def test_an_epsilon_never_exceeds_the_studys_target_nor_falls(federation: Any) -> None:
    study = federation.study(training={"rounds": 3})
    finished = federation.run(study, federation.sites(*SITES))
    for site in SITES:
        spent = [line.sites[site].epsilon for line in finished.folder.rounds()]
        assert spent == sorted(spent)
        assert 7.9 < spent[-1] <= 8.0
