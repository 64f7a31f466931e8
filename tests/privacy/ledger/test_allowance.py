"""A run takes no more than was agreed: so many steps, and one message for each round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import PolicyRefused
from medfl.privacy.ledger.allowance import most_steps
from medfl.privacy.ledger.ledger import Agreement, Ledger, Permit
from medfl.privacy.mechanism import Mechanism

STEPS = 2
MECHANISM = Mechanism(
    sampling_prob=0.1,
    noise_multiplier=4.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=20,
)


def agreement(*, steps: int) -> Agreement:
    return Agreement(
        study="s",
        proposal="0" * 64,
        mechanism=MECHANISM,
        members=frozenset({"a"}),
        steps=steps,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with room for hundreds of rounds, and a run of four rounds."""
    with Ledger.create(tmp_path / "ledger", cohort="DU", epsilon=8.0, delta=1e-5) as opened:
        opened.agree("run", agreement(steps=most_steps(rounds=4, local_steps=STEPS)))
        yield opened


def pay(ledger: Ledger, number: int, message: str = "", *, run: str = "run") -> Permit:
    return ledger.charge(
        study="s",
        run=run,
        round=number,
        message_id=message or f"m{number}",
        mechanism=MECHANISM,
    )


def refused(ledger: Ledger, *arguments: Any, code: str, **keywords: Any) -> None:
    head = ledger.head()
    with pytest.raises(PolicyRefused) as caught:
        pay(ledger, *arguments, **keywords)
    assert caught.value.code == code
    assert ledger.head() == head


@pytest.mark.parametrize(
    ("rounds", "charged"), [(1, 4), (4, 7), (12, 15), (13, 17), (40, 50), (41, 52)]
)
def test_the_allowance_is_a_quarter_of_the_rounds_and_at_least_three(
    rounds: int, charged: int
) -> None:
    assert most_steps(rounds=rounds, local_steps=1) == charged
    assert most_steps(rounds=rounds, local_steps=7) == 7 * charged


def test_a_round_under_44_message_ids_is_computed_once(ledger: Ledger) -> None:
    pay(ledger, 1, "first")
    for number in range(43):
        refused(ledger, 1, f"again-{number}", code="policy-round")
    assert ledger.steps(run="run") == STEPS


def test_a_message_that_is_asked_again_without_end_ends_at_the_allowance(ledger: Ledger) -> None:
    for _ in range(4 + 3):
        pay(ledger, 1)
    for number in (1, 2):
        refused(ledger, number, code="policy-steps")
    assert ledger.steps(run="run") == 7 * STEPS


def test_more_rounds_than_agreed_end_at_the_allowance(ledger: Ledger) -> None:
    for number in range(1, 8):
        pay(ledger, number)
    refused(ledger, 8, code="policy-steps")


def test_a_run_that_loses_three_rounds_to_crashes_goes_on_to_its_end(ledger: Ledger) -> None:
    for number in (1, 1, 2, 2, 3, 3, 4):
        pay(ledger, number)
    assert ledger.spent().by_run[0].charges == 7


def test_each_run_has_an_agreement_of_its_own(ledger: Ledger) -> None:
    refused(ledger, 1, run="another", code="policy-not-agreed")
    ledger.agree("another", agreement(steps=STEPS))
    pay(ledger, 1, run="another")
    refused(ledger, 2, run="another", code="policy-steps")
    pay(ledger, 1)


def test_an_agreement_of_an_earlier_version_allows_no_further_charge(ledger: Ledger) -> None:
    old = agreement(steps=9).to_dict()
    del old["steps"]
    assert Agreement.from_dict(old).steps == 0
    with ledger._store.writing():
        ledger._store.append("agree", {"run": "old", **old})
    refused(ledger, 1, run="old", code="policy-steps")


@pytest.mark.parametrize("steps", [-1, 1.0, True, "1", None])
def test_an_impossible_number_of_steps_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="Expected whole steps"):
        agreement(steps=steps)
