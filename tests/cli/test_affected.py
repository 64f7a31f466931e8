"""A ledger that medfl 0.1 has charged is whole, and does not pass for well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.cli import affected
from medfl.config import load_site
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.accounting.reassessment import Reassessment
from medfl.privacy.ledger.ledger import Agreement
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.mechanism import Mechanism
from medfl.site.state import hospital_state

STEPS, ROUNDS = 5, 3
MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=4.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=4,
    revision=1,
)


def charge_as_then(folder: Path, *, released: bool = True) -> None:
    """Rounds of a run as medfl 0.1 wrote them into a ledger."""
    values = {name: value for name, value in MECHANISM.to_dict().items() if name != "revision"}
    store = LedgerStore.open(folder)
    with store.writing():
        for number in range(1, ROUNDS + 1):
            spent = epsilon([Charge(mechanism=MECHANISM, steps=number * STEPS)], delta=1e-5)
            content = {
                "study": "glioma-2025",
                "run": "old",
                "round": number,
                "message_id": f"old/{number}",
                "mechanism": values,
                "steps": STEPS,
                "lifetime_epsilon": spent,
                "cohort": "north",
                "delta": 1e-5,
                "accountant": "PLD of dp-accounting 0.6.0",
            }
            store.append("charge", content)
            if released and number > 1:
                charge = store.head.sequence
                store.append("release", {"charge": charge, "digest": f"{number:064x}"})
    store.close()


@pytest.fixture
def north(medfl: Any, hospital_file: Callable[..., Path]) -> Path:
    """A hospital with keys and an empty ledger."""
    file = hospital_file("north")
    assert medfl("site", "init", load_site(file).state).code == 0
    assert medfl("ledger", "init", file, "--yes").code == 0
    return file


def said(text: str) -> str:
    """The output with all white space as single spaces."""
    return " ".join(text.split())


def expect_warning(text: str) -> None:
    for part in (
        "WARNING: medfl 0.1 charged 15 steps of 1 run here, and its promise was too small:",
        "study glioma-2025, run old",
        "against anyone who reads the low bits of released values, as a study's server can: "
        "no bound",
        "Do not rely on this budget",
        "medfl cannot call back what was released",
    ):
        assert part in said(text)


def test_verify_budget_and_check_export_warn_of_old_charges(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    state, file = load_site(north).state, tmp_path / "export.json"
    charge_as_then(state / "ledger")
    verified = medfl("ledger", "verify", north)
    assert verified.code == 0  # the bookkeeping is right
    assert "as charged. WARNING" in said(verified.out)
    expect_warning(verified.out)
    shown = medfl("budget", north)
    assert shown.code == 0
    expect_warning(shown.out)
    assert medfl("ledger", "export", north, "--out", file).code == 0
    checked = medfl("ledger", "check-export", file, "--key", state / "site.pub")
    assert checked.code == 0
    expect_warning(checked.out)
    # 15 steps of up to three others each: the patient's own C and 2 C for each of them.
    found = json.loads(medfl("budget", north, "--json").out)["affected"]
    stated = epsilon([Charge(mechanism=MECHANISM, steps=15)], delta=1e-5)
    assert found["stated_epsilon"] == pytest.approx(stated)
    assert found["bound_for_real_numbers"] == pytest.approx(49.4, abs=2)
    assert found["bound_for_low_bits"] is None
    assert (found["steps"], found["released_steps"]) == (15, 10)
    assert found["runs"] == [{"study": "glioma-2025", "run": "old"}]


def test_a_ledger_of_this_version_prints_nothing_new(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    now = Mechanism(**{**MECHANISM.to_dict(), "revision": 2})
    with hospital_state(load_site(north)).open_ledger() as ledger:
        agreement = Agreement(
            study="glioma", proposal="0" * 64, mechanism=now, members=frozenset({"a"}), steps=5
        )
        ledger.agree("new", agreement)
        ledger.charge(study="glioma", run="new", round=1, message_id="m", mechanism=now)
    state, file = load_site(north).state, tmp_path / "export.json"
    medfl("ledger", "export", north, "--out", file)
    for command in (
        ("ledger", "verify", north),
        ("budget", north),
        ("budget", north, "--json"),
        ("ledger", "check-export", file, "--key", state / "site.pub"),
    ):
        ended = medfl(*command)
        assert ended.code == 0, ended.err
        assert ended.out
        for word in ("WARNING", "affected", "medfl 0.1", "as charged", "low bits"):
            assert word not in said(ended.out)


def test_what_the_witness_carries_into_a_new_ledger_is_still_warned_of(
    medfl: Any, north: Path
) -> None:
    ledger = load_site(north).state / "ledger"
    charge_as_then(ledger)
    with hospital_state(load_site(north)).open_ledger() as opened:
        opened.admit("glioma-2025", [Charge(mechanism=MECHANISM, steps=5)], run="old")
    shutil.rmtree(ledger)
    done = medfl("ledger", "acknowledge", north, "--reason", "disk lost")
    assert done.code == 0, done.err
    expect_warning(done.out)
    expect_warning(medfl("ledger", "verify", north).out)


def test_old_steps_that_never_left_the_site_are_told_apart(medfl: Any, north: Path) -> None:
    charge_as_then(load_site(north).state / "ledger", released=False)
    text = said(medfl("ledger", "verify", north).out)
    assert "no result of these steps was released" in text
    assert "Do not rely" not in text
    assert json.loads(medfl("budget", north, "--json").out)["affected"]["bound_for_low_bits"] == 0


@pytest.mark.parametrize(
    ("bound", "shown"), [(3391.2, "epsilon <= 3,400"), (None, "real numbers only: no bound")]
)
def test_bounds_are_rounded_up_and_infinite_ones_are_said_in_words(
    bound: float | None, shown: str
) -> None:
    found = Reassessment(
        steps=1, runs=(("a", "b"),), released=1, stated=8.9, bound=bound, delta=1e-5
    )
    assert shown in said(affected.warning(found))
    assert "1 step of 1 run" in affected.warning(found)
