"""Every fault leaves at least as much charged as released, and each is met as it should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medfl.privacy.accounting.charges import Charge
from medfl.privacy.ledger.ledger import Ledger, Permit

PIPELINES = Path(__file__).parents[2] / "pipelines"

pytestmark = pytest.mark.slow

ON, KILLED = "went on", "killed"

# Answers, steps charged, steps released.
EXPECTED: dict[str, tuple[tuple[str, ...], int, int]] = {
    "killed before BEGIN": ((KILLED, ON), 2, 2),
    "killed, insert not committed": ((KILLED, ON), 2, 2),
    # From its commit on a charge stands, and what is computed again is charged again...
    "killed, committed": ((KILLED, ON), 4, 2),
    "killed in mid-training": ((KILLED, ON), 4, 2),
    "killed before the outbox": ((KILLED, ON), 4, 2),
    # ...until the result is in the outbox, from where it is sent again free of charge.
    "killed after the outbox": ((KILLED, ON), 2, 2),
    "killed in mid-send": ((KILLED, ON), 2, 2),
    "killed before the acknowledgement": ((KILLED, ON), 2, 2),
    "disk full": (("ledger", ON), 2, 2),
    "disk full at the outbox": (("outbox", ON), 4, 2),
    "I/O error": (("ledger", ON), 2, 2),
    "read-only disk": ((ON, "ledger", ON), 4, 4),
    "corrupt page": ((ON, "ledger"), 2, 2),
    "log deleted": ((KILLED, "ledger"), 2, 0),
    "file missing": ((ON, "ledger"), 2, 2),
    "database rolled back": ((ON, ON, "ledger"), 4, 4),
    "database and head rolled back": ((ON, ON, "ledger"), 4, 4),
    "broken chain": ((ON, "ledger"), 2, 2),
    "two processes": (("budget-exceeded", ON), 2, 2),
    "doubled message": ((ON, ON), 2, 2),
    "clock backwards": ((ON, ON), 2, 2),
    "negative amount": (("message-body",) * 2, 0, 0),
    "zero amount": (("message-body", "policy-noise"), 0, 0),
    "NaN amount": (("message-body",) * 2, 0, 0),
    "infinite amount": (("message-body",) * 2, 0, 0),
    "boolean amount": (("message-body",) * 2, 0, 0),
    "text amount": (("message-body",) * 2, 0, 0),
    # What was killed had fitted the budget, to the last bit; a second time does not.
    "at the budget": ((KILLED, "budget-exceeded"), 2, 0),
    "one ulp below the budget": ((KILLED, "budget-exceeded"), 2, 0),
    "one ulp above the budget": ((KILLED, "budget-exceeded"), 2, 0),
    "migration": ((ON, "ledger"), 2, 2),
    "delta mismatch": ((ON, "ledger"), 2, 2),
    "changed accountant": ((ON, ON), 4, 4),
    "new run id": ((ON, "budget-exceeded", "policy-not-agreed"), 2, 2),
    "unaffordable plan": ((ON, "budget-exceeded"), 2, 2),
}


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PIPELINES))
        import ledger_faults

        yield ledger_faults


@pytest.fixture(scope="module")
def laboratory(faults: ModuleType) -> Iterator[Any]:
    with faults.laboratory() as lab:
        yield lab


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_is_met_as_it_should_be(fault: str, faults: ModuleType, laboratory: Any) -> None:
    outcome = faults.run(fault, laboratory)
    assert (outcome.answers, outcome.charged, outcome.released) == EXPECTED[fault]


def test_power_lost_at_any_write_leaves_a_ledger_that_goes_on(
    faults: ModuleType, laboratory: Any
) -> None:
    outcome = faults.run("power loss", laboratory)
    replays, *answers = outcome.answers
    assert int(replays.removesuffix(" replays")) >= 20
    assert answers == [ON]
    assert outcome.balance == 0  # at the worst point; a charge without a result at some others


def test_no_fault_is_left_out(faults: ModuleType) -> None:
    assert set(faults.FAULTS) == set(EXPECTED) | {"power loss"}


def test_a_site_that_charges_nothing_is_found(
    faults: ModuleType, laboratory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def permit_only(self: Ledger, **charged: Any) -> Permit:
        mechanism = charged["mechanism"]
        return Permit(Charge(mechanism=mechanism, steps=mechanism.local_steps))

    monkeypatch.setattr(Ledger, "charge", permit_only)
    monkeypatch.setattr(Ledger, "mark_released", lambda *_: None)
    assert faults.run("doubled message", laboratory).balance < 0


def test_a_site_that_computes_again_for_the_same_charge_is_found(
    faults: ModuleType, laboratory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = Ledger.charge

    def once(self: Ledger, **charged: Any) -> Permit:
        mechanism = charged["mechanism"]
        if any(row.run == charged["run"] for row in self.spent().by_run):
            return Permit(Charge(mechanism=mechanism, steps=mechanism.local_steps))
        return charge(self, **charged)

    monkeypatch.setattr(Ledger, "charge", once)
    monkeypatch.setattr(Ledger, "mark_released", lambda *_: None)
    monkeypatch.setattr("medfl.site.outbox.Outbox.get", lambda *_, **__: None)
    assert faults.run("killed in mid-send", laboratory).balance < 0


def test_the_table_is_written_as_lines_and_a_breach_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "two_faults.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(PIPELINES)!r})\n"
        "import typer\n"
        "import ledger_faults as faults\n"
        "keep = ('doubled message', 'new run id')\n"
        "faults.FAULTS = {name: faults.FAULTS[name] for name in keep}\n"
        "if sys.argv.pop() == 'broken':\n"
        "    from faulty_hospital import Hospital\n"
        "    Hospital.released = property(lambda hospital: 3)\n"
        "typer.run(faults.main)\n"
    )
    for state, expected in (("sound", 0), ("broken", 1)):
        done = subprocess.run(
            [sys.executable, str(script), "--json", state],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expected, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["fault"] for line in lines] == ["doubled message", "new run id"]
        assert [line["charged"] for line in lines] == [2, 2]
        assert all((line["balance"] < 0) == bool(expected) for line in lines)
