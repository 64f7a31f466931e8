"""A patient's randomness is named after the patient and the step, and leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medfl.privacy.accounting.charges import Charge
from medfl.privacy.engine import RoundDiagnostics, train_round
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.patients import PatientLoss, Patients

NAMES = tuple("abcdefgh")


def patients(names: tuple[str, ...] = NAMES, stream: str = "s", **changes: Any) -> Patients:
    return Patients(names=names, stream=stream, loss_of=changes.get("loss_of", unused))


def unused(index: int, generator: torch.Generator) -> Tensor:
    raise AssertionError("no loss is computed here")


def drawn(of: Patients, index: int, step: int) -> list[float]:
    """A value of each generator that a loss could use."""
    with of.randomness(index, step=step) as own:
        return [
            float(torch.rand((), generator=own)),
            float(torch.rand(())),
            float(np.random.rand()),  # noqa: NPY002
            random.random(),  # noqa: S311
            float(nn.functional.dropout(torch.ones(64)).sum()),
        ]


def test_randomness_depends_on_the_pseudonym_and_not_on_the_place() -> None:
    everybody = patients()
    fewer = patients(("h", "c"))
    assert drawn(everybody, 2, 5) == drawn(fewer, 1, 5)
    assert drawn(everybody, 7, 5) == drawn(fewer, 0, 5)


def test_randomness_does_not_depend_on_who_came_before() -> None:
    torch.manual_seed(1)
    alone = drawn(patients(), 3, 0)
    for index in (0, 6, 3, 1):
        drawn(patients(), index, 0)
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert drawn(patients(), 3, 0) == alone


@pytest.mark.parametrize("generator", range(4))
def test_every_patient_step_and_round_has_other_values(generator: int) -> None:
    values = {
        drawn(patients(stream=stream), index, step)[generator]
        for stream in ("round 1", "round 2")
        for index in range(len(NAMES))
        for step in range(3)
    }
    assert len(values) == 2 * len(NAMES) * 3


def test_a_patients_own_generator_and_the_global_ones_are_unrelated() -> None:
    own, of_layers, *_ = drawn(patients(), 0, 0)
    assert own != of_layers


@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_are_put_back(fails: bool) -> None:
    def states() -> list[Any]:
        of_numpy = np.random.get_state()  # noqa: NPY002
        return [torch.get_rng_state().tolist(), random.getstate(), of_numpy[1].tolist()]

    before = states()
    try:
        with patients().randomness(0, step=0):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002, S311
            if fails:
                raise RuntimeError("a patient's loss")
    except RuntimeError:
        pass
    assert states() == before


def test_two_patients_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct pseudonyms"):
        patients(("a", "b", "a"))


class Absorbed(torch.optim.SGD):
    """Keeps what a step hands out, and moves nothing."""

    def step(self, *_: Any) -> Any:
        self.handed = [each.grad.clone() for each in self.param_groups[0]["params"]]


class Chosen:
    """Draws who a test wants to be drawn, and adds no noise."""

    origin = "seeded"

    def __init__(self, present: set[int]) -> None:
        self._present = present

    def uniform(self, count: int) -> np.ndarray:
        return np.array([0.0 if index in self._present else 0.99 for index in range(count)])

    def rounded_normal(self, shape: tuple[int, ...], *, std: float) -> Tensor:
        del std
        return torch.zeros(shape, dtype=torch.int64)


class WithDropout(nn.Module):
    """Every kind of randomness that a loss may use."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.outer = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.inner(x).sigmoid(), p=0.4)
        return self.outer(hidden).sum() * (1 + random.random())  # noqa: S311


@pytest.fixture(scope="module")
def network() -> Iterator[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield WithDropout()


MECHANISM = Mechanism(
    sampling_prob=0.5,
    noise_multiplier=1.0,
    clip_norm=0.1,
    clipping="fixed",
    local_steps=1,
    declared_patients=len(NAMES),
    noise_origin="seeded",
)


def handed(network: nn.Module, loss_of: PatientLoss, present: set[str]) -> list[Tensor]:
    """What a step of `train_round` hands to the optimizer if these are drawn."""
    optimizer = Absorbed(network.parameters(), lr=1.0)
    found: RoundDiagnostics = train_round(
        network,
        mechanism=MECHANISM,
        permit=Permit(Charge(mechanism=MECHANISM, steps=1)),
        patients=patients(loss_of=loss_of),
        optimizer=optimizer,
        source=Chosen({NAMES.index(name) for name in present}),
        proximal_mu=0.0,
        on_step=lambda *_: None,
    )
    assert found.drawn == (len(present),)
    assert found.failures == ()
    steps = [each.double() * MECHANISM.divisor / MECHANISM.grid for each in optimizer.handed]
    return [each.round() for each in steps]


@settings(max_examples=15)
@given(present=st.sets(st.sampled_from(NAMES), min_size=2))
def test_whoever_is_taken_away_moves_the_sum_by_the_clip_norm_at_most(
    network: nn.Module, present: set[str]
) -> None:
    def loss_of(index: int, generator: torch.Generator) -> Tensor:
        return network(torch.randn((4, 6), generator=generator))

    together = handed(network, loss_of, present)
    alone = {name: handed(network, loss_of, {name}) for name in present}
    for part, parts in zip(together, zip(*alone.values(), strict=True), strict=True):
        assert torch.equal(part, torch.stack(parts).sum(dim=0))
    for name in present:
        without = handed(network, loss_of, present - {name})
        moved = [a - b for a, b in zip(together, without, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(moved, alone[name], strict=True))
        norm_squared = sum(float(part.square().sum()) for part in moved)
        assert norm_squared <= (MECHANISM.clip_norm / MECHANISM.grid) ** 2


def test_one_generator_for_all_would_be_noticed(network: nn.Module) -> None:
    """The fault of the first engine: the test above fails on it."""
    shared = torch.Generator().manual_seed(0)

    def loss_of(index: int, generator: torch.Generator) -> Tensor:
        return network(torch.randn((4, 6), generator=shared)) * torch.randn((), generator=shared)

    def begin() -> None:
        shared.manual_seed(0)

    largest = 0.0
    for name in "abcd":
        begin()
        together = handed(network, loss_of, set(NAMES))
        begin()
        without = handed(network, loss_of, set(NAMES) - {name})
        moved = sum(float((a - b).square().sum()) for a, b in zip(together, without, strict=True))
        largest = max(largest, moved**0.5 * MECHANISM.grid / MECHANISM.clip_norm)
    assert largest > 1.2
