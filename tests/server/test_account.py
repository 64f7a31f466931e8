"""What ``privacy.json`` says of a site follows from the federation ledger alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from medfl.privacy.mechanism import Mechanism
from medfl.runs.records import Round, SitePrivacy, SiteRound
from medfl.server.account import privacy_summary
from medfl.server.ledger import FederationLedger
from medfl.server.run_folder import RunFolder

pytestmark = pytest.mark.slow

ROUNDS, STEPS, DELTA = 4, 5, 1e-5
MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=2.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=20,
)


def outcome(name: str) -> SiteRound:
    return SiteRound(outcome=name, code="", epsilon=1.0, budget=8.0, steps=STEPS)


@pytest.fixture(scope="module")
def summary(
    tmp_path_factory: pytest.TempPathFactory, voice_of: Callable[..., Any]
) -> dict[str, SitePrivacy]:
    """DU took part in every round, HT was rejected in the last, UK only came for the last."""
    folder = RunFolder(tmp_path_factory.mktemp("summary") / "run")
    voices = {name: voice_of(name, mechanism=MECHANISM) for name in ("DU", "HT", "UK")}
    ledger = FederationLedger(folder)
    for voice in voices.values():
        ledger.declare(voice.declaration(delta=DELTA))
    for number in range(1, ROUNDS + 1):
        last = number == ROUNDS
        names = ("DU", "HT", "UK") if last else ("DU", "HT")
        for name in names:
            update = voices[name].update(
                number,
                run_steps=STEPS if name == "UK" else STEPS * number,
                ledger_sequence=10 + number,
                ledger_hash=f"{number}" * 64,
            )
            ledger.record(update, site=name, round_number=number, admitted=True)
        outcomes = {
            name: outcome("rejected" if last and name == "HT" else "admitted") for name in names
        }
        folder.append_round(Round(round=number, seconds=1.0, sites=outcomes))
    return {entry.site: entry for entry in privacy_summary(folder)}


def epsilon(steps: int, *, delta: float) -> float:
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    step = dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(2.0))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def test_epsilon_is_that_of_all_reported_steps(summary: dict[str, SitePrivacy]) -> None:
    for site, rounds in {"DU": ROUNDS, "HT": ROUNDS, "UK": 1}.items():
        entry = summary[site]
        assert entry.steps == rounds * STEPS
        assert entry.epsilon_pld == pytest.approx(epsilon(rounds * STEPS, delta=DELTA), rel=1e-6)
        for delta, value in entry.epsilon_at.items():
            assert value == pytest.approx(epsilon(rounds * STEPS, delta=float(delta)), rel=1e-6)


def test_the_three_accountants_agree_as_they_should(summary: dict[str, SitePrivacy]) -> None:
    entry = summary["DU"]
    assert entry.epsilon_prv == pytest.approx(entry.epsilon_pld, abs=0.02)
    assert entry.epsilon_pld < entry.epsilon_rdp < 1.3 * entry.epsilon_pld
    assert entry.epsilon_pld < entry.epsilon_replace_one


def test_attack_figures_are_probabilities_that_grow_with_the_steps(
    summary: dict[str, SitePrivacy],
) -> None:
    for name in ("mu", "membership_advantage", "tpr_at_1_percent_fpr"):
        assert (
            0
            < getattr(summary["UK"], name)
            < getattr(summary["DU"], name)
            < (math.inf if name == "mu" else 1)
        )


def test_lost_rounds_are_those_without_an_admitted_update(
    summary: dict[str, SitePrivacy],
) -> None:
    assert {name: entry.lost_rounds for name, entry in summary.items()} == {
        "DU": 0,
        "HT": 1,
        "UK": ROUNDS - 1,
    }


def test_the_newest_ledger_head_is_told(summary: dict[str, SitePrivacy]) -> None:
    assert summary["DU"].ledger_sequence == 10 + ROUNDS
    assert summary["DU"].ledger_hash == f"{ROUNDS}" * 64
    assert summary["DU"].lifetime_epsilon == 7.5


def test_a_site_that_sent_nothing_has_spent_nothing(
    tmp_path: Path, voice_of: Callable[..., Any]
) -> None:
    folder = RunFolder(tmp_path / "run")
    du = voice_of("DU", mechanism=MECHANISM)
    FederationLedger(folder).declare(du.declaration())
    (entry,) = privacy_summary(folder)
    assert entry.epsilon_pld == entry.steps == entry.lost_rounds == 0
    assert entry.ledger_sequence == 1
    assert entry.event_key == du.keys.event_key


def test_what_never_arrived_is_counted_and_told(
    tmp_path: Path, voice_of: Callable[..., Any]
) -> None:
    folder = RunFolder(tmp_path / "run")
    du = voice_of("DU", mechanism=MECHANISM)
    ledger = FederationLedger(folder)
    ledger.declare(du.declaration())
    lost = du.update(1, run_steps=2 * STEPS)  # one round was charged and never arrived
    ledger.record(lost, site="DU", round_number=1, admitted=True)
    ledger.presume("DU", round_number=2, code="silent")
    (entry,) = privacy_summary(folder)
    assert (entry.steps, entry.unseen_steps) == (3 * STEPS, 2 * STEPS)
    assert entry.epsilon_pld == pytest.approx(epsilon(3 * STEPS, delta=DELTA), rel=1e-6)


def test_a_site_that_did_not_come_back_after_a_resume_is_still_told(
    tmp_path: Path, voice_of: Callable[..., Any]
) -> None:
    folder = RunFolder(tmp_path / "run")
    voices = {name: voice_of(name, mechanism=MECHANISM) for name in ("DU", "HT")}
    ledger = FederationLedger(folder)
    for name, voice in voices.items():
        ledger.declare(voice.declaration())
        ledger.record(voice.update(1), site=name, round_number=1, admitted=True)
    resumed = FederationLedger(folder)
    resumed.declare(voices["HT"].declaration(ledger_sequence=4, run_steps=STEPS))
    gone, _ = privacy_summary(folder)
    assert (gone.site, gone.steps) == ("DU", STEPS)
    assert gone.epsilon_pld == pytest.approx(epsilon(STEPS, delta=DELTA), rel=1e-6)
