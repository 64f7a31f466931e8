"""What ``privacy.json`` says of a site follows from the federation ledger alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from medfl.federation.federation_ledger import FederationLedger
from medfl.federation.messages import Declaration, SiteUpdate
from medfl.federation.privacy_summary import privacy_summary
from medfl.federation.run_folder import RoundRecord, RunFolder, SiteOutcome
from medfl.privacy.mechanism import Mechanism

ROUNDS, STEPS, DELTA = 4, 5, 1e-5
MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=2.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=20,
)


def declaration(site: str, **changes: Any) -> Declaration:
    values: dict[str, Any] = {
        "site": site,
        "purpose": "hospital",
        "declared_patients": 20,
        "weight": 20.0,
        "modalities": ("t2f",),
        "label_scheme": "brats",
        "delta": DELTA,
        "epsilon_budget": 8.0,
        "epsilon": 7.5,
        "mechanism": MECHANISM,
        "ledger_sequence": 1,
        "ledger_hash": "0" * 64,
    }
    return Declaration(**{**values, **changes})


def outcome(name: str) -> SiteOutcome:
    return SiteOutcome(outcome=name, code="", epsilon=1.0, budget=8.0, steps=STEPS)


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """DU took part in every round, HT was rejected in the last, UK only came for the last."""
    folder = RunFolder(tmp_path_factory.mktemp("summary") / "run")
    declarations = {name: declaration(name) for name in ("DU", "HT", "UK")}
    ledger = FederationLedger(folder, declarations=declarations)
    for number in range(1, ROUNDS + 1):
        last = number == ROUNDS
        names = ("DU", "HT", "UK") if last else ("DU", "HT")
        for name in names:
            update = SiteUpdate(
                site=name,
                message_id=f"run/{number}/{name}",
                mechanism=MECHANISM,
                steps=STEPS,
                ledger_sequence=10 + number,
                ledger_hash=f"{number}" * 64,
            )
            ledger.record(update, site=name, round_number=number, admitted=True)
        outcomes = {
            name: outcome("rejected" if last and name == "HT" else "admitted") for name in names
        }
        folder.append_round(RoundRecord(round=number, seconds=1.0, sites=outcomes))
    return {entry["site"]: entry for entry in privacy_summary(folder, declarations=declarations)}


def epsilon(steps: int, *, delta: float) -> float:
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    step = dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(2.0))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def test_epsilon_is_that_of_all_reported_steps(summary: dict[str, dict[str, Any]]) -> None:
    for site, rounds in {"DU": ROUNDS, "HT": ROUNDS, "UK": 1}.items():
        entry = summary[site]
        assert entry["steps"] == rounds * STEPS
        assert entry["epsilon_pld"] == pytest.approx(epsilon(rounds * STEPS, delta=DELTA), rel=1e-6)
        for delta, value in entry["epsilon_at"].items():
            assert value == pytest.approx(epsilon(rounds * STEPS, delta=float(delta)), rel=1e-6)


def test_the_three_accountants_agree_as_they_should(summary: dict[str, dict[str, Any]]) -> None:
    entry = summary["DU"]
    assert entry["epsilon_prv"] == pytest.approx(entry["epsilon_pld"], abs=0.02)
    assert entry["epsilon_pld"] < entry["epsilon_rdp"] < 1.3 * entry["epsilon_pld"]
    assert entry["epsilon_pld"] < entry["epsilon_replace_one"]


def test_attack_figures_are_probabilities_that_grow_with_the_steps(
    summary: dict[str, dict[str, Any]],
) -> None:
    for name in ("mu", "membership_advantage", "tpr_at_1_percent_fpr"):
        assert 0 < summary["UK"][name] < summary["DU"][name] < (math.inf if name == "mu" else 1)


def test_lost_rounds_are_those_without_an_admitted_update(
    summary: dict[str, dict[str, Any]],
) -> None:
    assert {name: entry["lost_rounds"] for name, entry in summary.items()} == {
        "DU": 0,
        "HT": 1,
        "UK": ROUNDS - 1,
    }


def test_the_newest_ledger_head_is_told(summary: dict[str, dict[str, Any]]) -> None:
    assert summary["DU"]["ledger_sequence"] == 10 + ROUNDS
    assert summary["DU"]["ledger_hash"] == f"{ROUNDS}" * 64
    assert summary["DU"]["lifetime_epsilon"] == 7.5


def test_a_site_that_sent_nothing_has_spent_nothing(tmp_path: Path) -> None:
    (entry,) = privacy_summary(RunFolder(tmp_path / "run"), declarations={"DU": declaration("DU")})
    assert entry["epsilon_pld"] == entry["steps"] == entry["lost_rounds"] == 0
    assert entry["ledger_sequence"] == 1
