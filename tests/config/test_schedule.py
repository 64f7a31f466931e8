"""Schedules against numbers worked out by hand and against torch's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from medfl.config.schedule import RoundSchedule, StudySchedule


def schedule(shape: Any, *, rounds: int, warmup: int = 0, final: float = 1.0) -> RoundSchedule:
    return RoundSchedule(shape=shape, warmup_rounds=warmup, final_fraction=final, rounds=rounds)


def factors(of: RoundSchedule) -> list[float]:
    return [of.factor(number) for number in range(1, of.rounds + 1)]


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (schedule("constant", rounds=3), [1, 1, 1]),
        (schedule("constant", rounds=4, warmup=3), [0.25, 0.5, 0.75, 1]),
        (schedule("linear", rounds=5, final=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (schedule("linear", rounds=6, warmup=1, final=0.2), [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        # cos 0, 60, 120 and 180 degrees: 1, 1/2, -1/2, -1.
        (schedule("cosine", rounds=4, final=0.2), [1, 0.8, 0.4, 0.2]),
        (schedule("cosine", rounds=6, warmup=2, final=0.2), [1 / 3, 2 / 3, 1, 0.8, 0.4, 0.2]),
        (schedule("linear", rounds=1, final=0.5), [1]),
        (schedule("cosine", rounds=2, warmup=1, final=0.5), [0.5, 1]),
    ],
    ids=str,
)
def test_the_factors_are_those_worked_out_by_hand(of: RoundSchedule, expected: list[float]) -> None:
    assert factors(of) == pytest.approx(expected, abs=1e-12)
    assert of.least == min(factors(of))


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(("rounds", "warmup", "final"), [(10, 0, 0.1), (23, 4, 0.01), (3, 1, 0.5)])
def test_the_factors_are_those_of_torchs_schedulers(
    shape: str, rounds: int, warmup: int, final: float
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    fall = rounds - warmup - 1
    after = (
        lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=fall)
        if shape == "linear"
        else lr_scheduler.CosineAnnealingLR(optimizer, T_max=fall, eta_min=final)
    )
    steps = after
    if warmup:
        before = lr_scheduler.LinearLR(
            optimizer, start_factor=1 / (warmup + 1), end_factor=1.0, total_iters=warmup
        )
        steps = lr_scheduler.SequentialLR(optimizer, [before, after], milestones=[warmup])
    expected = []
    for _ in range(rounds):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step()
    found = factors(schedule(shape, rounds=rounds, warmup=warmup, final=final))
    assert found == pytest.approx(expected, abs=1e-9)


@given(
    shape=st.sampled_from(["constant", "linear", "cosine"]),
    rounds=st.integers(1, 60),
    warmup=st.integers(0, 59),
    final=st.floats(1e-4, 0.999),
)
def test_every_factor_is_above_zero_and_the_largest_is_one_exactly(
    shape: str, rounds: int, warmup: int, final: float
) -> None:
    final = 1.0 if shape == "constant" else final
    of = schedule(shape, rounds=rounds, warmup=min(warmup, rounds - 1), final=final)
    found = factors(of)
    assert max(found) == found[of.warmup_rounds] == 1.0
    assert min(found) == of.least > 0
    assert found[: of.warmup_rounds] == sorted(found[: of.warmup_rounds])
    assert found[of.warmup_rounds :] == sorted(found[of.warmup_rounds :], reverse=True)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"shape": "exponential"}, "expected shape"),
        ({"shape": "linear"}, "final_fraction < 1 exactly where"),
        ({"shape": "constant", "final_fraction": 0.5}, "final_fraction < 1 exactly where"),
        ({"shape": "cosine", "final_fraction": 0.0}, "final_fraction in"),
        ({"shape": "cosine", "final_fraction": float("nan")}, "final_fraction in"),
        ({"shape": "cosine", "final_fraction": "0.1"}, "final_fraction in"),
        ({"warmup_rounds": -1}, "warmup_rounds in"),
        ({"warmup_rounds": 5}, "warmup_rounds in .*0, 4.*found 5"),
        ({"warmup_rounds": 1.0}, "warmup_rounds in"),
        ({"warmup_rounds": True}, "warmup_rounds in"),
        ({"rounds": 0}, "rounds in"),
        ({"rounds": 10**6 + 1}, "rounds in"),
    ],
    ids=str,
)
def test_a_value_outside_its_range_is_refused(values: dict[str, Any], rule: str) -> None:
    sound = {"shape": "constant", "warmup_rounds": 0, "final_fraction": 1.0, "rounds": 5}
    with pytest.raises(ValueError, match=rule):
        RoundSchedule(**sound | values)


@pytest.mark.parametrize("number", [0, -1, 6])
def test_there_is_no_round_before_the_first_or_after_the_last(number: int) -> None:
    with pytest.raises(ValueError, match=r"a round in \[1, 5\]"):
        schedule("constant", rounds=5).factor(number)


def test_a_section_says_what_is_not_said_by_staying_constant() -> None:
    assert StudySchedule().is_constant
    assert not StudySchedule(warmup_rounds=1).is_constant
    given = StudySchedule.model_validate_json(
        json.dumps({"shape": "linear", "final_fraction": 0.1})
    )
    assert not given.is_constant
    assert given.over(7) == schedule("linear", rounds=7, final=0.1)
