"""The mechanism test believes the real engine and catches engines with a planted bug."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from medfl.audit import mechanism_probe as module
from medfl.audit.figure import FALSE_ALARM, SHARE, Figure
from medfl.audit.mechanism_probe import MechanismProbe, probe_mechanism
from medfl.privacy.mechanism import Clipping
from medfl.reporting.audit_words import MEASURED

SLOW_BUGS = {
    # Small effects, which only as many steps as a real audit takes tell from chance.
    "noise one percent short": "noise_shape",
    "noise cut at 4 sigma": "noise_beyond_4",
    "last bit tells who was drawn": "low_bits_by_draw",
    "drawn too often": "drawn_share",
}
CAUGHT_BY = {
    "no noise": "noise_std",
    "noise in one parameter only": "noise_std",
    "noise halved": "noise_std",
    "noise divided by the batch": "noise_std",
    "noise repeated in every step": "noise_between_steps",
    "noise repeated in every round": "noise_between_rounds",
    "noise shared by two parameters": "noise_between_parameters",
    "noise of a row": "noise_between_weights",
    "noise in common": "noise_in_common",
    "noise that cancels": "noise_between_weights",
    "noise wound back": "noise_shifted",
    "uniform noise": "noise_shape",
    "Laplace noise": "noise_shape",
    "noise cut at 3 sigma": "noise_beyond_3",
    "even noise": "low_bits",
    "a bit in a mantissa": "off_grid",
    "a sum in float32": "off_grid",
    "clipped per crop": "sensitivity",
    "clipped by parameter": "sensitivity_spread",
    "never clipped": "sensitivity",
    "empty batch skipped": "irregular_rounds",
    "released twice": "irregular_rounds",
    "everybody drawn": "drawn_share",
    "batches of a fixed size": "batch_size_variance",
    "drawn with replacement": "drawn_twice",
    "one coin for all": "batch_size_variance",
    "shuffled epochs": "drawn_again",
    "somebody left out": "drawn_least",
}


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs show early, and what counts as chance grows with fewer steps."""
    monkeypatch.setattr(module, "ROUNDS", 6)
    monkeypatch.setattr(module, "DRAWN_ROUNDS", 12)


@pytest.mark.usefixtures("few_rounds")
def test_the_engine_keeps_its_promise() -> None:
    found = probe_mechanism(noise_origin="seeded", clipping="normalised")
    assert found.broken == ()
    assert found.keeps_promise
    # As many releases as steps in both worlds of both kinds, and in the rounds of draws.
    assert found.steps == (4 * 6 + 12) * module.STEPS
    # Every figure has words in the report, and its share of false alarms.
    assert {figure.name for figure in found.figures} == set(MEASURED)
    assert len(found.figures) * SHARE <= FALSE_ALARM * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
def test_the_engine_keeps_its_promise_with_a_hospitals_noise(clipping: Clipping) -> None:
    found = probe_mechanism(noise_origin="operating-system", clipping=clipping)
    assert found.broken == ()
    assert found.values > 3e6
    # As tight as so many steps allow.
    assert found["sensitivity"].at_most < 1.06
    assert found["noise_std"].at_least > 0.92
    assert found["drawn_share"].at_most < 1.2 * module.SMALL_SAMPLING_PROB
    # Nothing is wasted either.
    assert found["sensitivity"].found > 0.94
    assert found["noise_std"].found < 1.02


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_an_engine_with_a_planted_bug_is_caught(bug: str, plant: Callable[[str], None]) -> None:
    plant(bug)
    found = probe_mechanism(noise_origin="operating-system", clipping="fixed")
    assert not found.keeps_promise
    assert CAUGHT_BY[bug] in found.broken
    if bug == "clipped per crop":
        assert found["sensitivity"].found == pytest.approx(4, abs=0.2)
    if bug == "clipped by parameter":  # four parameters, each with a part of the same size
        assert found["sensitivity_spread"].found == pytest.approx(2, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("bug", SLOW_BUGS)
def test_an_engine_with_a_small_bug_is_caught(bug: str, plant: Callable[[str], None]) -> None:
    plant(bug)
    found = probe_mechanism(noise_origin="operating-system", clipping="fixed")
    assert SLOW_BUGS[bug] in found.broken


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("bug", ["noise shared by two parameters", "a bit in a mantissa"])
def test_bugs_that_no_variance_shows_are_caught(bug: str, plant: Callable[[str], None]) -> None:
    plant(bug)
    found = probe_mechanism(noise_origin="seeded", clipping="fixed")
    assert found.broken == (CAUGHT_BY[bug],)


@pytest.mark.parametrize(("at", "holds"), [(0.8, False), (0.9, True), (1.1, True), (1.2, False)])
def test_a_figure_outside_of_what_chance_explains_breaks_the_promise(
    at: float, holds: bool
) -> None:
    figure = Figure(name="noise_in_common", found=at, promised=1.0, at_least=0.9, at_most=1.1)
    assert figure.holds is holds
    assert built(figure).keeps_promise is holds
    assert built(figure).broken == (() if holds else ("noise_in_common",))


def test_what_is_no_number_keeps_no_promise() -> None:
    assert not Figure(name="mu", found=float("nan"), promised=1.0, at_most=2.0).holds


def test_the_result_is_json() -> None:
    figure = Figure(name="mu", found=8.1, promised=8.0, at_most=8.5)
    values = json.loads(json.dumps(built(figure).to_dict(), allow_nan=False))
    assert values["keeps_promise"] is True
    assert values["figures"] == [
        {
            "name": "mu",
            "found": 8.1,
            "promised": 8.0,
            "at_least": None,
            "at_most": 8.5,
            "holds": True,
        }
    ]


def built(*figures: Figure) -> MechanismProbe:
    """A test with these figures."""
    return MechanismProbe(
        figures=figures, noise_origin="seeded", clipping="fixed", steps=10, values=100
    )
