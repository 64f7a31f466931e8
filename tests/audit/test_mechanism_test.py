"""The mechanism test believes the real engine and catches engines with a planted bug."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from medfl.audit import mechanism_test as module
from medfl.audit.mechanism_test import STANDARD_ERRORS, Figure, MechanismTest, mechanism_test
from medfl.privacy.mechanism import Clipping

FEW_ROUNDS = 30  # bugs show early, and what counts as chance grows with fewer steps

CAUGHT_BY = {
    "no noise": "noise_std",
    "noise in one parameter only": "noise_std",
    "noise halved": "noise_std",
    "noise divided by the batch": "noise_std",
    "noise repeated in every step": "noise_std",
    "noise repeated in every round": "noise_std",
    "clipped per crop": "sensitivity",
    "never clipped": "sensitivity",
    "empty batch skipped": "noise_std_of_small_batches",
    "everybody drawn": "inclusion",
}


def wastes_nothing(found: MechanismTest) -> bool:
    """Whether every figure is the promised one in both directions."""
    figures = (
        found.sensitivity,
        found.noise_std,
        found.mu,
        found.inclusion,
        found.noise_std_of_small_batches,
    )
    return all(abs(figure.deviation) <= STANDARD_ERRORS for figure in figures)


def test_the_engine_keeps_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", FEW_ROUNDS)
    found = mechanism_test(noise_origin="seeded", clipping="normalised")
    assert found.keeps_promise
    assert wastes_nothing(found)


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
def test_the_engine_keeps_its_promise_with_a_hospitals_noise(clipping: Clipping) -> None:
    found = mechanism_test(noise_origin="operating-system", clipping=clipping)
    assert found.keeps_promise
    assert wastes_nothing(found)
    # As tight as 1500 steps allow.
    assert STANDARD_ERRORS * found.sensitivity.standard_error < 0.085
    assert STANDARD_ERRORS * found.noise_std.standard_error < 0.025


@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_an_engine_with_a_planted_bug_is_caught(
    bug: str, plant: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUNDS", FEW_ROUNDS)
    plant(bug)
    found = mechanism_test(noise_origin="operating-system", clipping="fixed")
    assert not found.keeps_promise
    assert abs(getattr(found, CAUGHT_BY[bug]).deviation) > STANDARD_ERRORS
    if bug == "clipped per crop":
        assert found.sensitivity.found == pytest.approx(module.CROPS, abs=0.3)


@pytest.mark.parametrize("name", ["sensitivity", "mu", "inclusion"])
def test_a_figure_above_its_promise_breaks_it_and_one_below_does_not(name: str) -> None:
    assert not built(**{name: STANDARD_ERRORS + 0.1}).keeps_promise
    assert built(**{name: STANDARD_ERRORS - 0.1}).keeps_promise
    assert built(**{name: -100.0}).keeps_promise


@pytest.mark.parametrize("name", ["noise_std", "noise_std_of_small_batches"])
def test_noise_below_its_promise_breaks_it_and_noise_above_does_not(name: str) -> None:
    assert not built(**{name: -STANDARD_ERRORS - 0.1}).keeps_promise
    assert built(**{name: 0.1 - STANDARD_ERRORS}).keeps_promise
    assert built(**{name: 100.0}).keeps_promise


def test_the_result_is_json() -> None:
    values = json.loads(json.dumps(built().to_dict()))
    assert values["keeps_promise"] is True
    assert values["mu"] == {"found": 2.0, "promised": 2.0, "standard_error": 0.1, "deviation": 0.0}
    assert not math.isnan(values["standard_errors"])


def built(**deviations: float) -> MechanismTest:
    """A test whose figures lie so many standard errors above their promises."""

    def figure(name: str) -> Figure:
        return Figure(found=2.0 + 0.1 * deviations.get(name, 0.0), promised=2.0, standard_error=0.1)

    return MechanismTest(
        sensitivity=figure("sensitivity"),
        noise_std=figure("noise_std"),
        mu=figure("mu"),
        inclusion=figure("inclusion"),
        noise_std_of_small_batches=figure("noise_std_of_small_batches"),
        noise_origin="seeded",
        clipping="fixed",
    )
