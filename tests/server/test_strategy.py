"""Aggregation against the formulas of the papers in plain numpy, and the gate in front of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from medfl.errors import MessageError, QuorumError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import Declaration, SiteUpdate, TrainTask, to_arrays
from medfl.server.strategy import Aggregator, admit, exponential_average, largest_update_norm

Arrays = dict[str, np.ndarray]

SHAPES = {"conv.weight": (3, 2, 2), "bias": (4,), "scale": ()}
WEIGHTS = {"east": 3.0, "north": 1.0, "south": 4.0, "west": 2.0, "centre": 0.5}
FAULTY = 1
RATE, MOMENTUM, SECOND, TAU = 0.7, 0.8, 0.95, 1e-2

pytestmark = pytest.mark.usefixtures("as_server")


def random_arrays(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in arrays.items()}


def aggregator(federation: Any, strategy: str) -> Aggregator:
    settings = {
        "strategy": strategy,
        "server_learning_rate": RATE,
        "momentum": MOMENTUM,
        "second_momentum": SECOND,
        "adaptivity": TAU,
        "min_sites": len(WEIGHTS),
        "faulty_sites": FAULTY if strategy in ("trimmed-mean", "krum") else 0,
    }
    return Aggregator(federation.study(aggregation=settings, training={"rounds": 4}))


def aggregate(
    server: Aggregator, updates: Mapping[str, Arrays], *, start: Arrays, number: int = 1
) -> Arrays:
    records = {site: to_arrays(tensors(arrays)) for site, arrays in updates.items()}
    result = server.aggregate(
        records, start=tensors(start), site_weights=WEIGHTS, round_number=number
    )
    return {name: value.numpy() for name, value in result.items()}


def site_updates(number: int) -> dict[str, Arrays]:
    return {site: random_arrays(10 * number + index) for index, site in enumerate(WEIGHTS)}


def average(updates: Mapping[str, Arrays]) -> Arrays:
    """McMahan et al., arXiv 1602.05629, algorithm 1, under the declared weights."""
    total = sum(WEIGHTS[site] for site in updates)
    return {
        name: sum(WEIGHTS[site] / total * arrays[name] for site, arrays in updates.items())
        for name in SHAPES
    }


def averaging(start: Arrays, updates: Mapping[str, Arrays], kept: dict[str, Any], t: int) -> Arrays:
    return average(updates)


def with_momentum(
    start: Arrays, updates: Mapping[str, Arrays], kept: dict[str, Any], t: int
) -> Arrays:
    """Hsu et al., arXiv 1909.06335, section 4: heavy ball on the averaged difference."""
    new = average(updates)
    old = kept.get("v")
    kept["v"] = {
        name: start[name] - new[name] + (MOMENTUM * old[name] if old else 0.0) for name in SHAPES
    }
    return {name: start[name] - RATE * kept["v"][name] for name in SHAPES}


def with_adam(start: Arrays, updates: Mapping[str, Arrays], kept: dict[str, Any], t: int) -> Arrays:
    """Reddi et al., arXiv 2003.00295, algorithm 2, with Flower's correction of the first rounds."""
    new = average(updates)
    rate = RATE * math.sqrt(1 - SECOND ** (t + 1)) / (1 - MOMENTUM ** (t + 1))
    result = {}
    for name in SHAPES:
        m, v = kept.get(name, (0.0, 0.0))
        change = new[name] - start[name]
        m, v = MOMENTUM * m + (1 - MOMENTUM) * change, SECOND * v + (1 - SECOND) * change**2
        kept[name] = (m, v)
        result[name] = start[name] + rate * m / (np.sqrt(v) + TAU)
    return result


def stacked(updates: Mapping[str, Arrays]) -> Arrays:
    return {
        name: np.stack([updates[site][name] for site in sorted(updates)]).astype(np.float64)
        for name in SHAPES
    }


def median(start: Arrays, updates: Mapping[str, Arrays], kept: dict[str, Any], t: int) -> Arrays:
    """Yin et al., arXiv 1803.01498, definition 1: of each coordinate, whatever the weights."""
    return {name: np.median(values, axis=0) for name, values in stacked(updates).items()}


def trimmed_mean(
    start: Arrays, updates: Mapping[str, Arrays], kept: dict[str, Any], t: int
) -> Arrays:
    """Yin et al., arXiv 1803.01498, definition 2: without the f largest and the f smallest."""
    return {
        name: np.sort(values, axis=0)[FAULTY:-FAULTY].mean(axis=0)
        for name, values in stacked(updates).items()
    }


def krum(start: Arrays, updates: Mapping[str, Arrays], kept: dict[str, Any], t: int) -> Arrays:
    """Blanchard et al. 2017, section 4: the update whose n - f - 2 nearest are the nearest."""
    flat = {
        site: np.concatenate([arrays[name].ravel() for name in SHAPES]).astype(np.float64)
        for site, arrays in updates.items()
    }
    scores = {
        site: sum(
            sorted(float(np.sum((one - flat[other]) ** 2)) for other in flat if other != site)[
                : max(1, len(flat) - FAULTY - 2)
            ]
        )
        for site, one in flat.items()
    }
    return updates[min(scores, key=lambda site: scores[site])]


FORMULAS = {
    "fedavg": averaging,
    "fedprox": averaging,
    "fedavgm": with_momentum,
    "fedadam": with_adam,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
}
ROBUST = ("median", "trimmed-mean", "krum")


def assert_close(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == SHAPES[name]
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", FORMULAS)
def test_three_rounds_follow_the_papers_formula(strategy: str, federation: Any) -> None:
    server, kept = aggregator(federation, strategy), {}
    start = expected = random_arrays(0)
    for number in (1, 2, 3):
        updates = site_updates(number)
        expected = FORMULAS[strategy](start, updates, kept, number)
        start = aggregate(server, updates, start=start, number=number)
        assert_close(start, expected)


@pytest.mark.parametrize("strategy", FORMULAS)
def test_a_restored_server_goes_on_bit_for_bit(strategy: str, federation: Any) -> None:
    server = aggregator(federation, strategy)
    start = random_arrays(0)
    for number in (1, 2):
        start = aggregate(server, site_updates(number), start=start, number=number)
    other = aggregator(federation, strategy)
    # What a checkpoint does to them.
    other.restore({name: value.clone() for name, value in server.state().items()})
    one = aggregate(server, site_updates(3), start=start, number=3)
    two = aggregate(other, site_updates(3), start=start, number=3)
    assert all(np.array_equal(one[name], two[name]) for name in SHAPES)
    states = server.state(), other.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("strategy", FORMULAS)
def test_a_server_without_a_checkpoint_begins_without_moments(
    strategy: str, federation: Any
) -> None:
    server = aggregator(federation, strategy)
    assert server.state() == {}
    server.restore({})
    assert_close(
        aggregate(server, site_updates(1), start=random_arrays(0)),
        FORMULAS[strategy](random_arrays(0), site_updates(1), {}, 1),
    )


def test_moments_belong_to_strategies_that_have_them(federation: Any) -> None:
    counts = {}
    for strategy in FORMULAS:
        server = aggregator(federation, strategy)
        aggregate(server, site_updates(1), start=random_arrays(0))
        counts[strategy] = len(server.state())
    assert counts == {"fedavg": 0, "fedprox": 0, "fedavgm": 3, "fedadam": 6} | dict.fromkeys(
        ROBUST, 0
    )


@pytest.mark.parametrize("strategy", ROBUST)
def test_a_site_that_is_far_off_moves_a_robust_rule_no_farther_than_the_others_are(
    strategy: str, federation: Any
) -> None:
    updates = site_updates(1)
    honest = [site for site in updates if site != "west"]
    updates["west"] = {name: np.full(shape, 1e6, np.float32) for name, shape in SHAPES.items()}
    found = aggregate(aggregator(federation, strategy), updates, start=random_arrays(0))
    for name in SHAPES:
        others = np.stack([updates[site][name] for site in honest])
        assert np.all(found[name] <= others.max(axis=0) + 1e-6)
        assert np.all(found[name] >= others.min(axis=0) - 1e-6)
    moved = aggregate(aggregator(federation, "fedavg"), updates, start=random_arrays(0))
    assert moved["bias"].min() > 1e5


@pytest.mark.parametrize("sites", [3, 4, 5, 9])
def test_the_trimmed_mean_cuts_off_as_many_as_may_be_faulty(sites: int, federation: Any) -> None:
    """At each end, whatever the rounding of their share: 2 f + 1 leave the one in the middle."""
    settings = {"strategy": "trimmed-mean", "faulty_sites": 1, "min_sites": 3}
    server = Aggregator(federation.study(aggregation=settings))
    values = [float(number**2) for number in range(sites)]
    updates = {
        f"site-{number}": to_arrays({"w": torch.full((1,), value)})
        for number, value in enumerate(values)
    }
    found = server.aggregate(
        updates,
        start={"w": torch.zeros(1)},
        site_weights=dict.fromkeys(updates, 1.0),
        round_number=1,
    )
    assert found["w"].item() == pytest.approx(np.mean(values[1:-1]))


def test_krum_tells_updates_apart_that_are_tiny_beside_the_weights(federation: Any) -> None:
    """Distances of whole models would be rounding alone: 1e-4 beside a norm of 1e3."""
    start = {"w": torch.full((10_000,), 10.0)}
    settings = {"strategy": "krum", "faulty_sites": 1, "min_sites": 5}
    directions = torch.randn(5, 10_000, generator=torch.Generator().manual_seed(1))
    sizes = [1.0, 1.0, 1.0, 0.1, 3.0]  # the fourth is the nearest to all
    weights = {
        f"site-{number}": {"w": start["w"] + 1e-5 * size * direction}
        for number, (size, direction) in enumerate(zip(sizes, directions, strict=True))
    }
    found = Aggregator(federation.study(aggregation=settings)).aggregate(
        {site: to_arrays(each) for site, each in weights.items()},
        start=start,
        site_weights=dict.fromkeys(weights, 1.0),
        round_number=1,
    )
    assert torch.allclose(found["w"], weights["site-3"]["w"], rtol=0, atol=1e-6)


def test_the_order_of_the_answers_does_not_change_a_bit(federation: Any) -> None:
    updates = site_updates(1)
    backwards = dict(reversed(updates.items()))
    one = aggregate(aggregator(federation, "fedavg"), updates, start=random_arrays(0))
    two = aggregate(aggregator(federation, "fedavg"), backwards, start=random_arrays(0))
    assert all(np.array_equal(one[name], two[name]) for name in SHAPES)


def test_the_average_is_the_float32_sum_in_the_order_of_the_sites_bit_for_bit(
    federation: Any,
) -> None:
    updates = site_updates(1)
    found = aggregate(aggregator(federation, "fedavg"), updates, start=random_arrays(0))
    total = sum(WEIGHTS[site] for site in WEIGHTS)
    for name in SHAPES:
        expected = np.zeros(SHAPES[name], np.float32)
        for site in sorted(WEIGHTS):
            expected = expected + updates[site][name] * np.float32(WEIGHTS[site] / total)
        assert found[name].tobytes() == np.asarray(expected).tobytes()


def test_missing_sites_leave_the_weights_of_the_others(federation: Any) -> None:
    updates = {site: arrays for site, arrays in site_updates(1).items() if site != "north"}
    assert_close(
        aggregate(aggregator(federation, "fedavg"), updates, start=random_arrays(0)),
        average(updates),
    )


def test_no_update_is_no_round(federation: Any) -> None:
    with pytest.raises(QuorumError):
        aggregate(aggregator(federation, "fedavg"), {}, start=random_arrays(0))


def test_the_moving_average_warms_up_to_its_decay() -> None:
    average_ = {"w": torch.tensor([1.0])}
    weights = {"w": torch.tensor([0.0])}
    # De et al., arXiv 2204.13650: min(decay, (1 + t) / (10 + t)).
    for number, rate in ((1, 2 / 11), (8, 0.5), (1000, 0.9)):
        found = exponential_average(average_, weights, decay=0.9, round_number=number)
        assert float(found["w"]) == pytest.approx(rate)


def test_without_decay_the_average_is_the_newest_model() -> None:
    old, new = tensors(random_arrays(1)), tensors(random_arrays(2))
    found = exponential_average(old, new, decay=0.0, round_number=7)
    assert all(torch.equal(found[name], new[name]) for name in SHAPES)


MECHANISM = Mechanism(
    sampling_prob=0.5,
    noise_multiplier=3.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=2,
    declared_patients=20,
)


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """What is signed of the weights: names and little-endian float32 values, sorted by name."""
    content = b"".join(
        name.encode() + b"\0" + weights[name].numpy().astype("<f4").tobytes(order="C")
        for name in sorted(weights)
    )
    return hashlib.sha256(content).hexdigest()


def admitted(federation: Any, weights: Mapping[str, torch.Tensor], **changes: Any) -> None:
    fields: dict[str, Any] = {
        "site": "east",
        "run": "run",
        "round": 1,
        "run_steps": 2,
        "weights_digest": digest(weights),
        "message_id": "run/1/east",
        "mechanism": MECHANISM,
        "steps": 2,
        "ledger_sequence": 3,
        "ledger_hash": "0" * 64,
    }
    declaration = Declaration(
        site="east",
        run="run",
        run_steps=0,
        event_key="0" * 64,
        purpose="open-data",
        declared_patients=20,
        weight=20.0,
        modalities=("t2f",),
        label_scheme="brats",
        delta=1e-5,
        epsilon_budget=8.0,
        epsilon=4.0,
        mechanism=MECHANISM,
        ledger_sequence=1,
        ledger_hash="0" * 64,
    )
    task = TrainTask(
        study=federation.study(), run="run", round=1, message_id="run/1/east", mechanism=MECHANISM
    )
    admit(
        SiteUpdate(**{**fields, **changes}),
        dict(weights),
        task=task,
        declaration=declaration,
        start=tensors(random_arrays(0)),
    )


def near() -> dict[str, torch.Tensor]:
    """Weights that one round can lead to."""
    start, moved = random_arrays(0), random_arrays(1)
    return tensors({name: np.float32(start[name] + 0.1 * moved[name]) for name in SHAPES})


def cap(
    study: Any,
    mechanism: Mechanism = MECHANISM,
    *,
    number: int = 1,
    start: dict[str, torch.Tensor] | None = None,
) -> float:
    return largest_update_norm(
        study, mechanism, round_number=number, start=start or tensors(random_arrays(0))
    )


def test_an_honest_update_is_admitted(federation: Any) -> None:
    admitted(federation, near())


def test_an_update_at_the_norm_cap_is_admitted_and_one_beyond_it_is_not(federation: Any) -> None:
    start = tensors(random_arrays(0))
    start["bias"] = start["bias"].double()
    for factor, refused in ((0.999, False), (1.001, True)):
        moved = tensors(random_arrays(0))
        moved["bias"] = (start["bias"] + factor * cap(federation.study()) / 2).float()
        if refused:
            with pytest.raises(MessageError) as caught:
                admitted(federation, moved)
            assert caught.value.code == "update-norm"
        else:
            admitted(federation, moved)


def test_noise_alone_is_never_too_large_and_ten_times_the_noise_is(federation: Any) -> None:
    """A large network, few patients, a small epsilon: far above any constant that was a cap."""
    mechanism = Mechanism(
        **{**MECHANISM.to_dict(), "noise_multiplier": 400.0, "declared_patients": 2}
    )
    parameters, steps = 10**6, mechanism.local_steps
    generator = np.random.default_rng(0)
    rate = federation.study().training.learning_rate
    std = rate * 400.0 / (0.5 * 2)
    norms = [
        np.linalg.norm(sum(generator.normal(0, std, parameters) for _ in range(steps)))
        for _ in range(20)
    ]
    largest = cap(federation.study(), mechanism, start={"w": torch.zeros(parameters)})
    assert 1e5 < max(norms) < largest < 1.1 * max(norms)


def test_a_clipped_gradient_in_every_step_is_within_the_cap(federation: Any) -> None:
    """All patients drawn, all gradients alike, no noise: the longest way that clipping allows."""
    mechanism = Mechanism(**{**MECHANISM.to_dict(), "noise_multiplier": 0.0})
    rate = federation.study().training.learning_rate
    farthest = mechanism.local_steps * rate * 20 * mechanism.clip_norm / mechanism.divisor
    assert farthest <= cap(federation.study(), mechanism) <= 1.02 * farthest


FALLING = {"warmup_rounds": 1, "shape": "cosine", "final_fraction": 0.1}


def test_the_cap_is_that_of_the_rounds_learning_rate_and_clip_norm(federation: Any) -> None:
    flat = federation.study(training={"rounds": 5})
    study = federation.study(training={"rounds": 5, "learning_rate_schedule": FALLING})
    for number, share in ((1, 0.5), (2, 1.0), (5, 0.1)):
        assert cap(study, number=number) == pytest.approx(share * cap(flat), rel=1e-12)
        smaller = Mechanism(**{**MECHANISM.to_dict(), "clip_norm": share})
        assert cap(flat, smaller) == pytest.approx(share * cap(flat), rel=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_weights_that_decay_are_within_the_cap(optimizer: str, mu: float, federation: Any) -> None:
    """No gradient and no noise, the largest weights: all of the way is the decay's."""
    training = {
        "optimizer": optimizer,
        "learning_rate": 1e-3,
        "weight_decay": 400.0,
        "proximal_mu": mu,
        "local_steps": 2,
    }
    strategy = {"strategy": "fedprox"} if mu else {}
    study = federation.study(training=training, aggregation=strategy)
    start = {"w": torch.full((10**4,), 50.0)}
    plain = federation.study(training={**training, "weight_decay": 1e-9}, aggregation=strategy)
    quiet = Mechanism(**{**MECHANISM.to_dict(), "noise_multiplier": 0.0, "clip_norm": 1e-6})
    farthest = 5000.0 * (1 - (1 - 1e-3 * 400.0) ** 2)
    assert cap(plain, quiet, start=start) < farthest < cap(study, quiet, start=start)
    assert cap(study, quiet, start=start) < 2 * farthest


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
@pytest.mark.parametrize("momentum", [MOMENTUM, 0.0])
def test_the_servers_learning_rate_is_that_of_the_round(
    strategy: str, momentum: float, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At full rate 1 and without momentum Flower's FedAvgM would not ask for the rate any more.
    monkeypatch.setitem(globals(), "MOMENTUM", momentum)
    settings = {
        "strategy": strategy,
        "server_learning_rate": 1.0,
        "server_learning_rate_schedule": FALLING,
        "momentum": momentum,
        "second_momentum": SECOND,
        "adaptivity": TAU,
    }
    server, kept = Aggregator(federation.study(aggregation=settings, training={"rounds": 3})), {}
    start = random_arrays(0)
    for number, rate in ((1, 0.5), (2, 1.0), (3, 0.1)):
        monkeypatch.setitem(globals(), "RATE", rate)
        updates = site_updates(number)
        expected = FORMULAS[strategy](start, updates, kept, number)
        start = aggregate(server, updates, start=start, number=number)
        assert_close(start, expected)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"site": "north"}, "update-site"),
        ({"message_id": "run/2/east"}, "update-replayed"),
        ({"run": "other"}, "update-replayed"),
        ({"round": 2}, "update-replayed"),
        ({"weights_digest": "0" * 64}, "update-digest"),
        ({"steps": 1}, "update-steps"),
        ({"mechanism": Mechanism(**{**MECHANISM.to_dict(), "clip_norm": 0.5})}, "update-mechanism"),
    ],
)
def test_an_update_that_answers_something_else_is_not_admitted(
    changes: dict[str, Any], code: str, federation: Any
) -> None:
    with pytest.raises(MessageError) as caught:
        admitted(federation, near(), **changes)
    assert caught.value.code == code


def test_three_sites_of_one_weight_get_the_mean_that_the_tutorials_print(federation: Any) -> None:
    """The worked example of federated averaging: 0.6, 0.1, 0.2 make 0.3."""
    server = Aggregator(federation.study(aggregation={"strategy": "fedavg"}))
    sent = {"east": 0.6, "north": 0.1, "south": 0.2}
    result = server.aggregate(
        {site: to_arrays({"w": torch.tensor([value])}) for site, value in sent.items()},
        start={"w": torch.zeros(1)},
        site_weights=dict.fromkeys(sent, 1.0),
        round_number=1,
    )
    assert result["w"].item() == pytest.approx(0.3, abs=1e-7)
