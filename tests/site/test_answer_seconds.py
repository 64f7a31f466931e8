"""A site that lets its updates rest: when they leave says nothing about how many were drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from medfl.privacy import engine
from medfl.protocol.messages import Declaration, Proposal, TrainTask
from medfl.segmentation.networks import trainable_state
from medfl.site import round as site_round
from medfl.site.agreement import declare
from medfl.site.round import train_update
from medfl.site.state import SiteState


class Clock:
    """A time that only passes where a test lets it pass."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(site_round, "time", clock)
    return clock


@pytest.fixture
def ask(federation: Any, clock: Clock) -> Callable[..., tuple[SiteState, Callable[[float], Any]]]:
    """A hospital with this setting, and a way to ask it for the first round."""

    def make(answer_seconds: float) -> tuple[SiteState, Callable[[float], Any]]:
        site = federation.hospital("east", privacy={"answer_seconds": answer_seconds})
        site_state = federation.site_state(site)
        study = federation.study(privacy={"noise": "operating-system"})
        declared: Declaration = declare(
            site_state, Proposal(study=study, run="first", private=True)
        )
        task = TrainTask(
            study=study,
            run="first",
            round=1,
            message_id="first/1/east",
            mechanism=declared.mechanism,
        )
        weights = trainable_state(site_state.network(study))

        def train(wait: float) -> Any:
            return train_update(
                site_state, task, weights, expires=clock.time() + wait, on_step=lambda *_: None
            )

        return site_state, train

    return make


@pytest.mark.parametrize(("took", "rests"), [(0.0, 0.0), (3.0, 57.0), (60.5, 59.5), (170.0, 10.0)])
def test_an_update_leaves_at_a_whole_multiple_of_the_seconds(
    took: float, rests: float, ask: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, train = ask(60.0)
    rounds = engine.train_round

    def takes(*arguments: Any, **keywords: Any) -> Any:
        clock.now += took
        return rounds(*arguments, **keywords)

    monkeypatch.setattr(site_round, "train_round", takes)
    begin = clock.now
    train(1000.0)
    assert sum(clock.slept) == pytest.approx(rests)
    assert (clock.now - begin) % 60 == pytest.approx(0)
    # The stored bytes say nothing new, and go at once.
    train(1000.0)
    assert sum(clock.slept) == pytest.approx(rests)


def test_without_the_setting_an_update_leaves_at_once(ask: Any, clock: Clock) -> None:
    _, train = ask(0.0)
    train(1000.0)
    assert clock.slept == []


def test_a_server_that_does_not_wait_so_long_is_refused_before_the_charge(ask: Any) -> None:
    site_state, train = ask(60.0)
    with pytest.raises(
        site_round.PolicyRefused, match="answer_seconds = 60, found 60 s"
    ) as refused:
        train(60.0)
    assert refused.value.code == "policy-answer-seconds"
    with site_state.open_ledger() as ledger:
        assert ledger.steps(run="first") == 0


def test_a_short_rest_is_real_time() -> None:
    begin = time.monotonic()
    site_round.rest(begin - 0.2, seconds=0.5)
    assert 0.25 < time.monotonic() - begin < 5
