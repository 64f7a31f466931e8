"""The patient-gradient engine against a loop written without it, and its promises one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from medfl.config.schedule import RoundSchedule
from medfl.errors import PermitExhausted, PrivacyError
from medfl.privacy import engine
from medfl.privacy.accounting.accountant import Charge
from medfl.privacy.engine import (
    PatientOptimizer,
    RoundDiagnostics,
    local_optimizer,
    train_round,
)
from medfl.privacy.ledger.ledger import Agreement, Ledger, Permit
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.privacy.patients import Patients

NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, int, int]]] = {
    "SegResNet": (
        nets.SegResNet,
        {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
        (8, 8, 8),
    ),
    "UNet with transposed convolutions": (
        nets.UNet,
        {
            "spatial_dims": 3,
            "channels": (4, 8),
            "strides": (2,),
            "norm": ("INSTANCE", {"affine": True}),
        },
        (8, 8, 8),
    ),
    # The smallest crop whose deepest features have more than one voxel to normalise over.
    "SwinUNETR": (nets.SwinUNETR, {"feature_size": 12, "depths": (1, 1, 1, 1)}, (64, 32, 32)),
}
CROPS = 2
GRID = 2.0**-20
"""Of a clip norm or a noise of 1; each patient's coordinates are cut to it."""

Losses = Callable[[int], Tensor]


def mechanism(**changes: Any) -> Mechanism:
    """Everybody is drawn, nothing is added: what comes out can be computed by hand."""
    values: dict[str, Any] = {
        "sampling_prob": 1.0,
        "noise_multiplier": 0.0,
        "clip_norm": 1.0,
        "clipping": "fixed",
        "local_steps": 1,
        "declared_patients": 5,
        "noise_origin": "seeded",
    }
    return Mechanism(**{**values, **changes})


class Weights(nn.Module):
    """A parameter of which every patient's gradient is a given vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def losses(self, gradients: Sequence[Tensor]) -> Losses:
        return lambda index: self.value @ gradients[index]


class CountedSteps(torch.optim.SGD):
    """Counts how often the weights were moved."""

    moved = 0

    def step(self, closure: Any = None) -> Any:
        self.moved += 1
        return super().step(closure)


class Received(torch.optim.SGD):
    """Keeps the gradients that it is given instead of moving the weights."""

    def step(self, *_: Any) -> Any:
        self.gradients = [value.grad.clone() for value in self.param_groups[0]["params"]]


def run(
    network: nn.Module, loss_of: Losses, *, population: int = 1, **changes: Any
) -> RoundDiagnostics:
    """One round with plain gradient descent at learning rate 1."""
    patients = Patients(
        names=tuple(f"patient {number}" for number in range(population)),
        stream="engine",
        loss_of=lambda index, _: loss_of(index),
    )
    used = changes.pop("mechanism", mechanism())
    arguments: dict[str, Any] = {
        "mechanism": used,
        "permit": Permit(Charge(mechanism=used, steps=used.local_steps)),
        "patients": patients,
        "optimizer": local_optimizer(network, kind="sgd", learning_rate=1.0),
        "source": SecureNormal.seeded("engine"),
        "proximal_mu": 0.0,
        "on_step": lambda *_: None,
    }
    return train_round(network, **{**arguments, **changes})


def released(gradients: Sequence[Tensor], *, seed: str = "engine", **changes: Any) -> Tensor:
    """What one round moves the weights by, times the divisor: the noisy sum of the gradients."""
    used = changes.pop("mechanism", mechanism())
    weights = Weights(gradients[0].numel())
    run(
        weights,
        weights.losses(gradients),
        mechanism=used,
        population=len(gradients),
        source=SecureNormal.seeded(seed),
        **changes,
    )
    return -weights.value.detach() * used.divisor


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_vectors(count: int, *, size: int = 40, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    table = scale * torch.randn((count, size), generator=generator, dtype=torch.float64)
    return list(table)


def clipped(gradients: Sequence[Tensor], *, clip_norm: float, clipping: str) -> list[Tensor]:
    """A patient's gradient scaled to the bound, as the papers write it."""
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    scale = min(1.0, clip_norm / norm)  # Abadi et al., "Deep Learning with ...", algorithm 1
    if clipping == "normalised":
        scale = clip_norm / (norm + 0.01)  # Bu et al., arXiv 2206.07136
    return [gradient * scale for gradient in gradients]


def plain_loop(
    network: nn.Module, losses: Iterable[Tensor], *, clip_norm: float, clipping: str, divisor: float
) -> list[Tensor]:
    """Clip each patient's gradient, add them up, divide: no hooks, no optimizer."""
    parameters = list(network.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros(1) if gradient is None else gradient for gradient in found]
        parts = clipped(gradients, clip_norm=clip_norm, clipping=clipping)
        total = [before + part for before, part in zip(total, parts, strict=True)]
    return [part / divisor for part in total]


@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
@pytest.mark.parametrize(
    "name",
    [
        "SegResNet",
        "UNet with transposed convolutions",
        pytest.param("SwinUNETR", marks=pytest.mark.slow),
    ],
)
def test_a_step_equals_a_plain_loop_over_patients(name: str, clipping: str) -> None:
    network_class, arguments, size = NETWORKS[name]
    torch.manual_seed(1)
    network = network_class(in_channels=2, out_channels=3, **arguments)
    images = [torch.randn((CROPS, 2, *size)) for _ in range(2)]

    def loss_of(index: int) -> Tensor:
        return 1000 * (1 + index) * (network(images[index]) ** 2).mean()

    optimizer = Received(network.parameters())
    used = mechanism(clip_norm=0.5, clipping=clipping)
    run(network, loss_of, mechanism=used, population=2, optimizer=optimizer)
    losses = map(loss_of, range(2))
    expected = plain_loop(network, losses, clip_norm=0.5, clipping=clipping, divisor=5.0)
    # Two patients' coordinates are cut to the grid; the rest is float32's rounding.
    for found, gradient in zip(optimizer.gradients, expected, strict=True):
        assert (found - gradient).abs().max() <= 2 * used.grid / 5 + 1e-6 * gradient.abs().max()


def test_gradients_inside_the_bound_are_left_as_they_are() -> None:
    gradients = [vector(0.3, 0.4), vector(-0.1, 0.2)]
    torch.testing.assert_close(
        released(gradients), gradients[0] + gradients[1], rtol=0, atol=2 * GRID
    )


def test_a_parameter_that_no_loss_reaches_only_gets_noise() -> None:
    network = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})

    def loss_of(index: int) -> Tensor:
        return network["used"](torch.ones(3)).sum()

    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    run(network, loss_of)
    assert torch.equal(network["unused"].weight, start["unused.weight"])
    run(network, loss_of, mechanism=mechanism(noise_multiplier=1.0))
    assert not torch.equal(network["unused"].weight, start["unused.weight"])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
def test_all_crops_of_a_patient_together_move_the_sum_by_at_most_the_clip_norm(
    clipping: str, count: int, scale: float
) -> None:
    weights = Weights(40)
    crops = torch.stack(random_vectors(count, scale=scale))
    used = mechanism(clip_norm=0.7, clipping=clipping)
    run(weights, lambda _: (crops @ weights.value).mean(), mechanism=used)
    moved = float(weights.value.detach().norm()) * used.divisor
    assert 0 < moved <= 0.7 * (1 + 1e-9)
    if scale > 1:
        assert moved > 0.69


@pytest.mark.parametrize("patients", [1, 3, 8])
def test_the_divisor_is_the_same_constant_whatever_the_batch(patients: int) -> None:
    used = mechanism(clip_norm=100.0)
    weights = Weights(2)
    gradient = vector(3.0, -4.0)
    run(weights, weights.losses([gradient] * patients), population=patients, mechanism=used)
    torch.testing.assert_close(weights.value.detach(), -patients * gradient / 5.0)


def test_the_divisor_is_the_expected_batch_of_the_declared_patients() -> None:
    used = mechanism(sampling_prob=0.25, declared_patients=6, clip_norm=10.0)
    sums = []

    def on_step(done: int, total: int) -> None:
        sums.append(float(weights.value.detach()))

    weights = Weights(1)
    rounds = [
        run(
            weights,
            weights.losses([vector(1.0)] * 9),
            mechanism=used,
            population=9,
            on_step=on_step,
            source=SecureNormal.seeded("divisor", number),
        ).drawn[0]
        for number in range(20)
    ]
    steps = [before - after for before, after in pairwise([0.0, *sums])]
    assert len(set(rounds)) > 3
    assert steps == pytest.approx([drawn / 1.5 for drawn in rounds])


@pytest.mark.parametrize("population", [0, 1, 8])
@pytest.mark.parametrize("sampling_prob", [1.0, 0.25])
def test_noise_has_the_promised_deviation_in_every_coordinate(
    sampling_prob: float, population: int
) -> None:
    used = mechanism(noise_multiplier=1.7, clip_norm=0.4, sampling_prob=sampling_prob)
    weights = Weights(40_000)
    run(weights, lambda _: 0.0 * weights.value.sum(), mechanism=used, population=population)
    noise = weights.value.detach()
    expected = 1.7 * 0.4 / (5 * sampling_prob)
    assert float(noise.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * 40_000))
    assert abs(float(noise.mean())) < 5 * expected / math.sqrt(40_000)


def test_an_empty_batch_is_noised_and_stepped_like_any_other() -> None:
    used = mechanism(sampling_prob=1e-6, noise_multiplier=1.5, local_steps=3)
    weights = Weights(20_000)
    optimizer = CountedSteps(weights.parameters(), lr=1.0)
    diagnostics = run(
        weights,
        lambda _: pytest.fail("nobody was drawn"),
        mechanism=used,
        optimizer=optimizer,
    )
    assert diagnostics.drawn == (0, 0, 0)
    assert optimizer.moved == 3
    moved = weights.value.detach() * used.divisor
    assert float(moved.std()) == pytest.approx(1.5 * math.sqrt(3), rel=0.03)


def test_noise_is_fresh_in_every_step_and_round() -> None:
    snapshots: list[Tensor] = []
    weights = Weights(5_000)
    for number in range(2):
        run(
            weights,
            lambda _: 0.0 * weights.value.sum(),
            mechanism=mechanism(noise_multiplier=1.0, local_steps=2),
            source=SecureNormal.seeded("fresh", number),
            on_step=lambda *_: snapshots.append(weights.value.detach().clone()),
        )
    table = torch.stack([torch.zeros(5_000, dtype=torch.float64), *snapshots]).diff(dim=0)
    correlations = torch.corrcoef(table) - torch.eye(4, dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / math.sqrt(5_000)


def test_a_global_seed_does_not_make_noise_repeat() -> None:
    used = mechanism(noise_multiplier=1.0, noise_origin="operating-system")
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        weights = Weights(10)
        run(
            weights,
            weights.losses([torch.zeros(10, dtype=torch.float64)]),
            mechanism=used,
            source=SecureNormal.from_operating_system(),
        )
        results.append(weights.value.detach())
    assert not torch.isclose(results[0], results[1]).any()


def test_a_patients_part_does_not_depend_on_the_other_patients() -> None:
    own, *others = random_vectors(3, scale=5.0)
    noisy = mechanism(noise_multiplier=1.0, clip_norm=0.8)
    parts = [
        released([own, other], mechanism=noisy)
        - released([torch.zeros_like(own), other], mechanism=noisy)
        for other in [*others, torch.zeros_like(own)]
    ]
    (expected,) = clipped([own], clip_norm=0.8, clipping="fixed")
    for part in parts:
        assert torch.equal(part, parts[0])
        torch.testing.assert_close(part, expected, rtol=0, atol=GRID)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
def test_a_gradient_that_is_not_finite_contributes_zero_and_the_noise_stays(
    clipping: str, broken: float
) -> None:
    used = mechanism(noise_multiplier=1.0, clipping=clipping)
    sound = random_vectors(2)
    sick = torch.full_like(sound[0], broken)
    with_it = released([sound[0], sick, sound[1]], mechanism=used)
    without = released([sound[0], torch.zeros_like(sick), sound[1]], mechanism=used)
    assert torch.equal(with_it, without)
    assert with_it.isfinite().all()
    noiseless = released([sound[0], sick, sound[1]], mechanism=mechanism(clipping=clipping))
    assert not torch.isclose(with_it, noiseless).any()


def test_gradients_that_are_not_finite_are_counted_for_the_sites_own_log() -> None:
    weights = Weights(2)
    gradients = [vector(1.0, 0.0), vector(math.nan, 0.0), vector(math.inf, 0.0)]
    diagnostics = run(weights, weights.losses(gradients), population=3)
    assert diagnostics == RoundDiagnostics(drawn=(3,), discarded=2)


def test_an_infinite_loss_contributes_zero() -> None:
    weights = Weights(2)
    diagnostics = run(weights, lambda _: weights.value.sum() * math.inf)
    assert diagnostics.discarded == 1
    assert torch.equal(weights.value.detach(), vector(0.0, 0.0))


class RecordedPermit:
    """Writes down when a step was paid."""

    def __init__(self, story: list[str], steps: int) -> None:
        self._permit = Permit(Charge(mechanism=mechanism(), steps=steps))
        self._story = story

    def consume(self) -> None:
        self._permit.consume()
        self._story.append("paid")


def test_every_step_is_paid_before_it_touches_a_patient() -> None:
    weights, story = Weights(1), []

    def loss_of(index: int) -> Tensor:
        story.append(f"patient {index}")
        return weights.value.sum()

    run(
        weights,
        loss_of,
        mechanism=mechanism(local_steps=2),
        permit=RecordedPermit(story, steps=2),
        population=2,
        on_step=lambda done, total: story.append(f"step {done} of {total}"),
    )
    step = ["paid", "patient 0", "patient 1"]
    assert story == [*step, "step 1 of 2", *step, "step 2 of 2"]


def test_a_step_that_no_charge_covers_touches_nobody() -> None:
    weights, story = Weights(1), []
    permit = RecordedPermit(story, steps=1)
    permit.consume()
    with pytest.raises(PermitExhausted):
        run(weights, lambda _: pytest.fail("touched a patient"), permit=permit)
    assert torch.equal(weights.value.detach(), vector(0.0))


def test_a_permit_that_runs_out_ends_the_round_before_the_next_step() -> None:
    weights, seen = Weights(1), []

    def loss_of(index: int) -> Tensor:
        seen.append(index)
        return weights.value.sum()

    with pytest.raises(PermitExhausted):
        run(
            weights,
            loss_of,
            mechanism=mechanism(local_steps=3),
            permit=Permit(Charge(mechanism=mechanism(), steps=2)),
        )
    assert seen == [0, 0]


@pytest.mark.parametrize(
    ("promised", "source"),
    [
        ("operating-system", SecureNormal.seeded("engine")),
        ("seeded", SecureNormal.from_operating_system()),
    ],
)
def test_noise_from_elsewhere_than_promised_is_refused(promised: str, source: SecureNormal) -> None:
    weights = Weights(1)
    used = mechanism(noise_multiplier=1.0, noise_origin=promised)
    permit = Permit(Charge(mechanism=used, steps=1))
    with pytest.raises(PrivacyError, match="noise from"):
        run(weights, lambda _: pytest.fail("touched a patient"), mechanism=used, source=source)
    permit.consume()
    assert torch.equal(weights.value.detach(), vector(0.0))


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
def test_fedprox_pulls_back_to_the_rounds_start_after_the_noise(noise_multiplier: float) -> None:
    steps, mu, rate = 4, 0.3, 0.5
    gradient = vector(0.2, -0.1)
    used = mechanism(noise_multiplier=noise_multiplier, local_steps=steps)
    path: list[Tensor] = []
    noise = [vector(0.0, 0.0)] * steps
    if noise_multiplier:
        bare = Weights(2)
        trace = [bare.value.detach().clone()]
        run(
            bare,
            lambda _: 0.0 * bare.value.sum(),
            mechanism=used,
            on_step=lambda *_: trace.append(bare.value.detach().clone()),
        )
        noise = [before - after for before, after in pairwise(trace)]
    weights = Weights(2)
    weights.value.data += 7.0
    run(
        weights,
        weights.losses([gradient]),
        mechanism=used,
        proximal_mu=mu,
        optimizer=local_optimizer(weights, kind="sgd", learning_rate=rate),
        on_step=lambda *_: path.append(weights.value.detach().clone()),
    )
    expected = start = vector(7.0, 7.0)
    for step in range(steps):
        # Li et al., arXiv 1812.06127, equation 2, with the noisy gradient in place of the gradient.
        expected = expected - rate * (gradient / 5 + noise[step] + mu * (expected - start))
        torch.testing.assert_close(path[step], expected)


def test_the_ledger_is_charged_as_many_steps_as_the_optimizer_makes(tmp_path: Path) -> None:
    used = mechanism(
        sampling_prob=0.2, noise_multiplier=2.0, local_steps=9, noise_origin="operating-system"
    )
    weights = Weights(3)
    optimizer = CountedSteps(weights.parameters(), lr=0.1)
    agreement = Agreement(
        study="gliomas", proposal="0" * 64, mechanism=used, members=frozenset({"a"}), steps=18
    )
    with Ledger.create(tmp_path / "ledger", cohort="DU", epsilon=8.0, delta=1e-5) as ledger:
        ledger.agree("a", agreement)
        diagnostics = []
        for number in (1, 2):
            permit = ledger.charge(
                study="gliomas", run="a", round=number, message_id=str(number), mechanism=used
            )
            diagnostics.append(
                run(
                    weights,
                    weights.losses(random_vectors(4, size=3)),
                    mechanism=used,
                    permit=permit,
                    population=4,
                    optimizer=optimizer,
                    source=SecureNormal.from_operating_system(),
                )
            )
        charged = ledger.spent().by_run[0].steps
    assert charged == optimizer.moved == sum(len(round_.drawn) for round_ in diagnostics) == 18


def test_patients_are_drawn_independently_with_the_mechanisms_probability() -> None:
    steps, population, q = 1500, 6, 0.3
    weights = Weights(1)
    drawn: list[set[int]] = [set()]

    def loss_of(index: int) -> Tensor:
        drawn[-1].add(index)
        return weights.value.sum()

    diagnostics = run(
        weights,
        loss_of,
        mechanism=mechanism(sampling_prob=q, local_steps=steps),
        population=population,
        on_step=lambda *_: drawn.append(set()),
    )
    table = torch.tensor(
        [[index in batch for index in range(population)] for batch in drawn[:steps]]
    ).double()
    assert diagnostics.drawn == tuple(int(size) for size in table.sum(dim=1))
    together = table.T @ table / steps
    single = together.diagonal()
    pairs = together[~torch.eye(population, dtype=torch.bool)]
    assert float((single - q).abs().max()) < 5 * math.sqrt(q * (1 - q) / steps)
    assert float((pairs - q * q).abs().max()) < 5 * math.sqrt(q * q * (1 - q * q) / steps)
    variance = population * q * (1 - q)
    assert float(table.sum(dim=1).var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / steps))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_only_trainable_parameters_change(kind: Any) -> None:
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    before = network.bias.clone()
    start = network.weight.detach().clone()
    run(
        network,
        lambda _: network(torch.ones(3)).sum(),
        mechanism=mechanism(noise_multiplier=1.0),
        optimizer=local_optimizer(network, kind=kind, learning_rate=0.1),
    )
    assert torch.equal(network.bias, before)
    assert not torch.isclose(network.weight, start).any()


def test_adam_is_given_the_noisy_average_and_nothing_else() -> None:
    used = mechanism(noise_multiplier=1.0)
    gradient = random_vectors(1)[0]
    noisy = released([gradient], mechanism=used) / used.divisor
    weights, twin = Weights(40), Weights(40)
    run(
        weights,
        weights.losses([gradient]),
        mechanism=used,
        optimizer=local_optimizer(weights, kind="adam", learning_rate=0.1),
    )
    adam = torch.optim.Adam(twin.parameters(), lr=0.1)
    twin.value.grad = noisy
    adam.step()
    torch.testing.assert_close(weights.value, twin.value)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weights_decay_after_the_noise_and_beside_the_gradient(kind: Any) -> None:
    """Algorithms 1 and 2 of arXiv 1711.05101: what the decay takes depends on the weights alone."""
    rate, decay, start = 0.1, 0.5, torch.linspace(-3, 3, 40)
    ways = []
    for of_decay in (0.0, decay):
        weights = Weights(40)
        weights.value.data.copy_(start)
        run(
            weights,
            weights.losses([1e3 * random_vectors(1)[0]]),
            mechanism=mechanism(noise_multiplier=1.0, clip_norm=0.5),
            optimizer=local_optimizer(
                weights, kind=kind, learning_rate=rate, weight_decay=of_decay
            ),
        )
        ways.append(weights.value.detach() - start)
    torch.testing.assert_close(ways[1], ways[0] - rate * decay * start)


def test_a_decay_leaves_the_clip_norm_to_the_patients() -> None:
    """Inside a patient's loss huge weights would eat it up: the sum is the same without."""
    used, gradients = mechanism(clip_norm=0.5), random_vectors(2)
    sums = []
    for start in (0.0, 1e4):
        weights = Weights(40)
        weights.value.data.fill_(start)
        before = weights.value.detach().clone()
        optimizer = local_optimizer(weights, kind="sgd", learning_rate=1.0, weight_decay=0.25)
        run(weights, weights.losses(gradients), mechanism=used, population=2, optimizer=optimizer)
        sums.append(weights.value.detach() - 0.75 * before)
    torch.testing.assert_close(sums[1], sums[0], rtol=0, atol=2e-3)


def test_adam_takes_no_decay_through_its_moments() -> None:
    with pytest.raises(ValueError, match="Expected no weight decay with 'adam'"):
        local_optimizer(Weights(2), kind="adam", learning_rate=0.1, weight_decay=0.1)


def test_noise_and_clipping_follow_the_clip_norm_of_the_round() -> None:
    course = RoundSchedule(shape="linear", warmup_rounds=1, final_fraction=0.01, rounds=12)
    whole = mechanism(noise_multiplier=2.0, clip_norm=8.0, clip_norm_schedule=course)
    silent = mechanism(noise_multiplier=0.0, clip_norm=8.0, clip_norm_schedule=course)
    for number in (1, 2, 7, 12):
        clip_norm = 8.0 * course.factor(number)
        noise = released([torch.zeros(20_000)], mechanism=whole.in_round(number))
        assert float(noise.std()) == pytest.approx(2.0 * clip_norm, rel=0.03)
        # Multiples of this round's grid: no low bits of another round's.
        grid = whole.in_round(number).grid
        assert grid <= 2.0 * clip_norm / 2**20 < 2 * grid
        (gradient,) = random_vectors(1, scale=1e3)
        moved = released([gradient], mechanism=silent.in_round(number))
        assert float(moved.norm()) == pytest.approx(clip_norm, rel=1e-4)


def test_the_mechanism_of_a_whole_run_is_no_mechanism_of_a_round() -> None:
    course = RoundSchedule(shape="linear", warmup_rounds=0, final_fraction=0.5, rounds=2)
    with pytest.raises(PrivacyError, match="the mechanism of one round"):
        released([vector(1.0)], mechanism=mechanism(clip_norm_schedule=course))


@pytest.mark.parametrize("failure", [RuntimeError("CUDA out of memory"), MemoryError(), OSError(5)])
@pytest.mark.parametrize("where", ["loss", "clipping"])
def test_a_patient_who_cannot_be_computed_contributes_zero_and_ends_nothing(
    failure: Exception, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = random_vectors(3, size=4)
    used = mechanism(noise_multiplier=1.0, local_steps=2)
    weights, clip = Weights(4), engine.clip_to_grid
    calls = iter(range(100))

    def fails_at_the_second(index: int) -> Tensor:
        if index == 1 and where == "loss":
            raise failure
        return weights.value @ gradients[index]

    def fails_midway(found: Sequence[Tensor], **keywords: Any) -> list[Tensor]:
        if len(found[0]) and next(calls) % 3 == 1:
            raise failure
        return clip(found, **keywords)

    if where == "clipping":
        monkeypatch.setattr(engine, "clip_to_grid", fails_midway)
    diagnostics = run(weights, fails_at_the_second, population=3, mechanism=used)
    monkeypatch.undo()
    assert diagnostics.failures == (type(failure).__name__,) * 2
    assert diagnostics.drawn == (3, 3)
    without = [gradients[0], torch.zeros_like(gradients[1]), gradients[2]]
    assert torch.equal(-weights.value.detach() * used.divisor, released(without, mechanism=used))


def test_a_sum_left_by_an_interrupted_step_does_not_reach_the_next_round() -> None:
    weights = Weights(2)
    gradients = [vector(0.5, 0.0), vector(0.0, 0.5)]

    def interrupted_at_the_second(index: int) -> Tensor:
        if index == 1:
            raise KeyboardInterrupt
        return weights.value @ gradients[0]

    with pytest.raises(KeyboardInterrupt):
        run(weights, interrupted_at_the_second, population=2)
    run(weights, weights.losses([gradients[1]]))
    torch.testing.assert_close(weights.value.detach(), -gradients[1] / 5)


def test_a_round_of_nobody_is_noise_and_steps_like_any_other() -> None:
    used = mechanism(noise_multiplier=1.5, local_steps=3)
    weights = Weights(20_000)
    diagnostics = run(
        weights, lambda _: pytest.fail("there is nobody"), population=0, mechanism=used
    )
    assert diagnostics.drawn == (0, 0, 0)
    moved = weights.value.detach() * used.divisor
    assert float(moved.std()) == pytest.approx(1.5 * math.sqrt(3), rel=0.03)


def test_a_mechanism_of_another_engine_is_refused() -> None:
    with pytest.raises(PrivacyError, match="revision 2, found 1"):
        run(Weights(1), lambda _: pytest.fail("touched a patient"), mechanism=mechanism(revision=1))


def test_the_engines_optimizer_holds_one_patients_gradient_at_a_time() -> None:
    weights = Weights(3)
    private = PatientOptimizer(
        torch.optim.SGD(weights.parameters(), lr=1.0),
        mechanism=mechanism(),
        source=SecureNormal.seeded("one"),
    )
    for gradient in random_vectors(5, size=3):
        assert private.add_patient(weights.value @ gradient)
        assert tuple(weights.value.grad_sample.shape) == (1, 3)


@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
@pytest.mark.parametrize("clip_norm", [1e-6, 0.7, 1.0, 1e6])
@pytest.mark.parametrize("sigma", [0.0, 1e-3, 1.0, 1e6])
def test_a_clipped_gradient_is_within_the_clip_norm_exactly(
    clipping: str, clip_norm: float, sigma: float
) -> None:
    used = mechanism(clip_norm=clip_norm, noise_multiplier=sigma, clipping=clipping)
    for scale in (1e-30, 1.0, 3e38):
        parts = [
            scale * torch.rand((1, *shape), generator=torch.Generator().manual_seed(number))
            for number, shape in enumerate([(7, 5, 3), (4,)])
        ]
        steps = engine.clip_to_grid(parts, mechanism=used)
        norm_squared = sum(int(value) ** 2 for part in steps for value in part.flatten())
        assert norm_squared * Fraction(used.grid) ** 2 <= Fraction(clip_norm) ** 2
        assert [part.dtype for part in steps] == [torch.int64] * 2
        assert [part.shape for part in steps] == [part.shape[1:] for part in parts]
        if scale > 1 and used.grid < clip_norm / 1000:
            assert math.sqrt(norm_squared) * used.grid > 0.9 * clip_norm


def test_rounding_that_would_exceed_the_clip_norm_is_taken_back() -> None:
    # 3^2 + 4^2 = 5^2: a factor that is too large by float64's rounding would cross the bound.
    used = mechanism(clip_norm=5.0)
    (steps,) = engine.clip_to_grid([vector(3e30, 4e30)[None]], mechanism=used)
    assert int(steps.square().sum()) <= (5.0 / used.grid) ** 2
    torch.testing.assert_close(
        steps.double() * used.grid, vector(3.0, 4.0), rtol=0, atol=2 * used.grid
    )


def test_coordinates_are_cut_toward_zero() -> None:
    used = mechanism(clip_norm=1.0)
    inside = vector(2.6, -2.6, 0.4, -0.4) * used.grid
    (steps,) = engine.clip_to_grid([inside[None]], mechanism=used)
    assert steps.tolist() == [2, -2, 0, 0]


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 1.6197, 7.0])
@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 3.0])
def test_what_is_released_lies_on_a_grid_that_follows_from_the_noise_alone(
    sigma: float, clip_norm: float
) -> None:
    used = mechanism(noise_multiplier=sigma, clip_norm=clip_norm)
    assert math.log2(used.grid).is_integer()
    assert 2**20 <= used.noise_std / used.grid < 2**21
    other = mechanism(
        noise_multiplier=clip_norm,
        clip_norm=sigma,
        sampling_prob=0.1,
        declared_patients=77,
        clipping="normalised",
    )
    assert other.grid == used.grid
    sums = released(random_vectors(3, scale=5.0), mechanism=used) / used.grid
    torch.testing.assert_close(sums, sums.round(), rtol=0, atol=1e-6)


ZEROED = 1500
"""Weights that the hostile server sends as zeros."""


def candidate_sums(count: int) -> list[Tensor]:
    """Clipped gradients of some patients, as an attacker who has guessed them knows them."""
    return [each / each.norm() for each in random_vectors(count, size=ZEROED)]


def impossible(update: Tensor, clean: Tensor) -> int:
    """Coordinates which no float32 noise explains, were `clean` the sum without noise.

    The low bits of a float32 sum survive where the noise nearly cancels it.
    """
    found = update.float().numpy()
    base = clean.float().numpy()
    guess = (update.double() - clean.double()).float().numpy()
    explained = np.zeros(found.shape, dtype=bool)
    for direction in (-np.inf, np.inf):
        noise = guess
        for _ in range(4):  # float32 numbers around the guess, which is rounded itself
            explained |= (base + noise).astype(np.float32) == found
            noise = np.nextafter(noise, np.float32(direction))
    return int((~explained).sum())


def float32_release(total: Tensor, *, sigma: float, seed: int) -> Tensor:
    """The old engine: noise cast to float32 and added in float32."""
    noise = torch.randn(total.shape, generator=torch.Generator().manual_seed(seed))
    return total.float() + sigma * noise


def test_the_low_bits_of_an_update_do_not_tell_who_was_drawn() -> None:
    """A server sends zeros, knows what everybody's gradient would be, and reads low bits."""
    sigma, steps = 2.0, 24
    used = mechanism(noise_multiplier=sigma, local_steps=1)
    gradients = candidate_sums(5)
    decided, right, decided_before = 0, 0, 0
    for number in range(steps):
        truly_there = number % 2 == 0
        present = gradients if truly_there else [torch.zeros_like(gradients[0]), *gradients[1:]]
        network = nn.Module()
        network.value = nn.Parameter(torch.zeros(ZEROED))
        run(
            network,
            lambda index, value=network.value, of=present: value @ of[index].float(),
            population=5,
            mechanism=used,
            source=SecureNormal.seeded("low bits", number),
        )
        update = -network.value.detach() * used.divisor
        cut = [
            engine.clip_to_grid([each.float()[None]], mechanism=used)[0] * used.grid
            for each in gradients
        ]
        for sums in (cut, gradients):
            # What the attacker believes: with patient 0 or without.
            rest = torch.stack(list(sums[1:])).double().sum(dim=0)
            counts = [impossible(update, rest + sums[0].double()), impossible(update, rest)]
            decided += min(counts) == 0 and max(counts) > 0
        right += counts[0 if truly_there else 1] < counts[1 if truly_there else 0]
        rest = torch.stack(gradients[1:]).sum(dim=0)
        total = rest + gradients[0] if truly_there else rest
        old = float32_release(total, sigma=sigma, seed=number)
        counts = [impossible(old, rest + gradients[0]), impossible(old, rest)]
        decided_before += counts[0 if truly_there else 1] == 0 < counts[1 if truly_there else 0]
    assert decided == 0
    assert right <= 20  # of 24: a coin does better with probability 1e-4
    # The attack itself is sound: against float32 noise it is always right.
    assert decided_before == steps
