"""The patient-gradient engine against a loop written without it, and its promises one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from medfl.errors import PermitExhausted, PrivacyError
from medfl.privacy.accountant import Charge
from medfl.privacy.engine import (
    PatientLoss,
    PatientOptimizer,
    RoundDiagnostics,
    local_optimizer,
    train_round,
)
from medfl.privacy.ledger import Ledger, Permit
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal

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

    def losses(self, gradients: Sequence[Tensor]) -> PatientLoss:
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


def run(network: nn.Module, loss_of: PatientLoss, **changes: Any) -> RoundDiagnostics:
    """One round with plain gradient descent at learning rate 1."""
    used = changes.pop("mechanism", mechanism())
    arguments: dict[str, Any] = {
        "mechanism": used,
        "permit": Permit(Charge(mechanism=used, steps=used.local_steps)),
        "population": 1,
        "loss_of": loss_of,
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
        # Large on purpose: Opacus clips to C / (norm + 1e-6), which differs by 1e-6 / norm.
        return 1000 * (1 + index) * (network(images[index]) ** 2).mean()

    optimizer = Received(network.parameters())
    used = mechanism(clip_norm=0.5, clipping=clipping)
    run(network, loss_of, mechanism=used, population=2, optimizer=optimizer)
    losses = map(loss_of, range(2))
    expected = plain_loop(network, losses, clip_norm=0.5, clipping=clipping, divisor=5.0)
    for found, gradient in zip(optimizer.gradients, expected, strict=True):
        assert (found - gradient).norm() <= 1e-6 * gradient.norm() + 1e-9


def test_gradients_inside_the_bound_are_left_as_they_are() -> None:
    gradients = [vector(0.3, 0.4), vector(-0.1, 0.2)]
    torch.testing.assert_close(released(gradients), gradients[0] + gradients[1])


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


@pytest.mark.parametrize("sampling_prob", [1.0, 0.25])
def test_noise_has_the_promised_deviation_in_every_coordinate(sampling_prob: float) -> None:
    used = mechanism(noise_multiplier=1.7, clip_norm=0.4, sampling_prob=sampling_prob)
    weights = Weights(40_000)
    run(weights, lambda _: 0.0 * weights.value.sum(), mechanism=used)
    noise = weights.value.detach()
    expected = 1.7 * 0.4 / (5 * sampling_prob)
    assert float(noise.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * 40_000))
    assert abs(float(noise.mean())) < 5 * expected / math.sqrt(40_000)


def test_an_empty_batch_is_noised_and_stepped_like_any_other() -> None:
    used = mechanism(sampling_prob=1e-9, noise_multiplier=1.5, local_steps=3)
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
        torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-9)


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
    with Ledger.create(tmp_path / "ledger", cohort="DU", epsilon=8.0, delta=1e-5) as ledger:
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


@pytest.mark.parametrize("kind", ["sgd", "adam"])
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


def test_a_sum_left_by_an_aborted_step_does_not_reach_the_next_round() -> None:
    weights = Weights(2)
    gradients = [vector(0.5, 0.0), vector(0.0, 0.5)]

    def fails_at_the_second(index: int) -> Tensor:
        if index == 1:
            raise RuntimeError("a damaged file")
        return weights.value @ gradients[0]

    with pytest.raises(RuntimeError, match="damaged"):
        run(weights, fails_at_the_second, population=2)
    run(weights, weights.losses([gradients[1]]))
    torch.testing.assert_close(weights.value.detach(), -gradients[1] / 5)


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
