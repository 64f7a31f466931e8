"""The server's account: every release once, by the agreed mechanism, never by a site's word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from medfl.federation.federation_ledger import FederationLedger
from medfl.federation.messages import Declaration, SiteUpdate
from medfl.federation.run_folder import RunFolder
from medfl.privacy.mechanism import Mechanism

MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=2.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=5,
    declared_patients=20,
)


def declaration(site: str) -> Declaration:
    return Declaration(
        site=site,
        purpose="hospital",
        declared_patients=20,
        weight=20.0,
        modalities=("t2f",),
        label_scheme="brats",
        delta=1e-5,
        epsilon_budget=8.0,
        epsilon=4.0,
        mechanism=MECHANISM,
        ledger_sequence=1,
        ledger_hash="0" * 64,
    )


def update(number: int, *, site: str = "DU", **changes: Any) -> SiteUpdate:
    values: dict[str, Any] = {
        "site": site,
        "message_id": f"run/{number}/{site}",
        "mechanism": MECHANISM,
        "steps": 5,
        "ledger_sequence": 2 * number,
        "ledger_hash": "0" * 64,
    }
    return SiteUpdate(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def ledger(folder: RunFolder) -> FederationLedger:
    return opened(folder)


def opened(folder: RunFolder) -> FederationLedger:
    sites = {name: declaration(name) for name in ("DU", "HT")}
    return FederationLedger(folder, declarations=sites)


def expected(steps: int) -> float:
    """Epsilon by dp-accounting itself."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    step = dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(2.0))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(1e-5))


def count(ledger: FederationLedger, given: SiteUpdate, number: int, *, site: str = "DU") -> float:
    return ledger.record(given, site=site, round_number=number, admitted=True)


def test_epsilon_is_recomputed_from_the_events(ledger: FederationLedger) -> None:
    assert ledger.epsilon("DU") == 0.0
    for number in (1, 2, 3):
        found = count(ledger, update(number), number)
        assert found == pytest.approx(expected(5 * number), rel=1e-9)
    assert ledger.epsilon("HT") == 0.0


def test_an_update_sent_again_is_counted_once(ledger: FederationLedger, folder: RunFolder) -> None:
    first = count(ledger, update(1), 1)
    assert count(ledger, update(1), 1) == first
    assert count(opened(folder), update(1), 1) == first
    assert len(folder.events()) == 1


def test_a_round_computed_again_is_counted_again(ledger: FederationLedger) -> None:
    first = count(ledger, update(1), 1)
    assert count(ledger, update(1, ledger_sequence=9), 1) > first


def test_a_ledger_sequence_that_stands_still_hides_nothing(ledger: FederationLedger) -> None:
    first = count(ledger, update(1, ledger_sequence=2), 1)
    assert count(ledger, update(2, ledger_sequence=2), 2) > first


def test_what_was_rejected_counts_as_well(ledger: FederationLedger, folder: RunFolder) -> None:
    ledger.record(update(1), site="DU", round_number=1, admitted=False)
    assert ledger.epsilon("DU") == pytest.approx(expected(5))
    assert folder.events()[0]["admitted"] is False


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 1},
        {"steps": 10**15},
        {"mechanism": Mechanism(**{**MECHANISM.to_dict(), "noise_multiplier": 1e6})},
        {"mechanism": Mechanism(**{**MECHANISM.to_dict(), "sampling_prob": 1e-9})},
        {"mechanism": Mechanism(**{**MECHANISM.to_dict(), "clip_norm": 0.5})},
    ],
)
def test_another_mechanism_than_agreed_counts_as_none(
    changes: dict[str, Any], ledger: FederationLedger, folder: RunFolder
) -> None:
    assert count(ledger, update(1, **changes), 1) == math.inf
    assert opened(folder).epsilon("DU") == math.inf


def test_the_site_that_was_asked_pays_whatever_name_it_gives(ledger: FederationLedger) -> None:
    count(ledger, update(1, site="HT"), 1, site="DU")
    assert ledger.epsilon("DU") > 0
    assert ledger.epsilon("HT") == 0.0


def test_a_server_that_starts_again_knows_what_was_spent(
    ledger: FederationLedger, folder: RunFolder
) -> None:
    for number in (1, 2):
        count(ledger, update(number), number)
    again = opened(folder)
    assert again.epsilon("DU") == ledger.epsilon("DU")
    assert [charge.steps for charge in again.charges("DU")] == [5, 5]
    count(again, update(3), 3)
    assert [event["sequence"] for event in folder.events()] == [1, 2, 3]
