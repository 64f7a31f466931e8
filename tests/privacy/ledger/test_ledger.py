import json
import math
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import BudgetExceeded, LedgerError, PermitExhausted, PolicyRefused
from medfl.privacy.accounting.accountant import (
    Charge,
    epsilon,
    lifetime_epsilon,
    noise_multiplier_for,
)
from medfl.privacy.ledger import store as ledger_store
from medfl.privacy.ledger.ledger import Agreement, Ledger, Permit, Terms
from medfl.privacy.mechanism import Mechanism

DELTA = 1e-5
STEPS = 5


def mechanism(**changes: Any) -> Mechanism:
    values: dict[str, Any] = {
        "sampling_prob": 0.3,
        "noise_multiplier": 2.0,
        "clip_norm": 1.0,
        "clipping": "fixed",
        "local_steps": STEPS,
        "declared_patients": 20,
    }
    return Mechanism(**{**values, **changes})


def cost(rounds: int) -> float:
    return epsilon([Charge(mechanism=mechanism(), steps=STEPS)] * rounds, delta=DELTA)


def pay(ledger: Ledger, number: int = 1, **changes: Any) -> Permit:
    arguments: dict[str, Any] = {
        "study": "gliomas",
        "run": "first",
        "round": number,
        "message_id": f"message-{number}",
        "mechanism": mechanism(),
    }
    return ledger.charge(**{**arguments, **changes})


def agreed(ledger: Ledger, *runs: str, steps: int = 10**6) -> Ledger:
    """The same ledger, after the site agreed to these runs."""
    for run in runs or ("first",):
        ledger.agree(
            run,
            Agreement(
                study="gliomas",
                proposal="0" * 64,
                mechanism=mechanism(),
                members=frozenset({"a"}),
                steps=steps,
            ),
        )
    return ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a hospital's ledger with a budget of 8 and nothing spent, agreed to two runs."""
    path = tmp_path / "state" / "ledger"
    agreed(Ledger.create(path, cohort="DU", epsilon=8.0, delta=DELTA), "first", "second").close()
    return path


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    with Ledger.open(folder) as opened:
        yield opened


@pytest.fixture
def open_data(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(
        tmp_path / "open", cohort="TCGA", epsilon=8.0, delta=DELTA, purpose="open-data"
    ) as opened:
        yield agreed(opened, "first", "baseline")


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a process of its own; its exit status, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BudgetExceeded:
            os._exit(3)
        except LedgerError:
            os._exit(4)
        except BaseException:  # noqa: BLE001
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- charging


def test_a_charge_permits_exactly_its_steps(ledger: Ledger) -> None:
    permit = pay(ledger)
    assert permit.charge == Charge(mechanism=mechanism(), steps=STEPS)
    for _ in range(STEPS):
        permit.consume()
    for _ in range(2):
        with pytest.raises(PermitExhausted):
            permit.consume()


def test_charges_add_up_to_the_accountants_epsilon(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        pay(ledger, number)
    spent = ledger.spent()
    assert spent.epsilon == spent.private_epsilon == cost(3)
    assert spent.budget == 8.0
    assert spent.delta == DELTA
    assert spent.remaining == pytest.approx(8.0 - cost(3))


def test_an_unused_ledger_has_spent_nothing(ledger: Ledger) -> None:
    spent = ledger.spent()
    assert spent.epsilon == spent.wasted_epsilon == 0
    assert spent.remaining == 8.0
    assert spent.by_run == ()
    assert ledger.history() == ()


def test_the_same_message_computed_again_is_charged_again(ledger: Ledger) -> None:
    pay(ledger)
    pay(ledger)
    assert ledger.spent().epsilon == cost(2)
    assert ledger.spent().by_run[0].charges == 2


def test_a_charge_beyond_the_budget_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with Ledger.create(folder, cohort="DU", epsilon=cost(3) - 1e-6, delta=DELTA) as ledger:
        agreed(ledger)
        pay(ledger, 1)
        pay(ledger, 2)
        before = ledger.head()
        rows = (folder / "ledger.sqlite-wal").stat().st_size
        with pytest.raises(BudgetExceeded) as refused:
            pay(ledger, 3)
        assert refused.value.code == "budget-exceeded"
        assert ledger.head() == before
        assert (folder / "ledger.sqlite-wal").stat().st_size == rows
        assert ledger.spent().epsilon == cost(2)


@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_a_charge_exactly_at_the_budget_is_accepted(tmp_path: Path, ulps: int) -> None:
    budget = cost(2)
    budget = math.nextafter(budget, math.inf * ulps) if ulps else budget
    with Ledger.create(tmp_path / "l", cohort="DU", epsilon=budget, delta=DELTA) as ledger:
        agreed(ledger)
        pay(ledger, 1)
        pay(ledger, 2)
        with pytest.raises(BudgetExceeded):
            pay(ledger, 3)


def test_a_smaller_charge_still_fits_after_a_refusal(tmp_path: Path) -> None:
    budget = cost(1) + 0.02
    with Ledger.create(tmp_path / "l", cohort="DU", epsilon=budget, delta=DELTA) as ledger:
        agreed(ledger)
        with pytest.raises(BudgetExceeded):
            pay(ledger, mechanism=mechanism(local_steps=6))
        pay(ledger)


def test_studies_are_counted_together_by_the_filter(ledger: Ledger) -> None:
    pay(ledger, 1, study="one")
    pay(ledger, 2, study="two", mechanism=mechanism(noise_multiplier=4.0))
    pay(ledger, 3, study="one")
    history = ledger.history()
    assert [sum(c.steps for c in study) for study in history] == [2 * STEPS, STEPS]
    assert ledger.spent().epsilon == lifetime_epsilon(history, delta=DELTA, budget=8.0) > cost(2)


def test_a_study_that_changes_its_noise_counts_as_two(ledger: Ledger) -> None:
    pay(ledger, 1)
    pay(ledger, 2, mechanism=mechanism(noise_multiplier=4.0))
    assert len(ledger.history()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_plan_made_from_the_ledger_is_never_refused_by_it(
    folder: Path, ledger: Ledger, earlier: int
) -> None:
    for number in range(earlier):
        weaker = mechanism(noise_multiplier=6.0 + number, local_steps=40)
        pay(ledger, number + 1, study=f"study-{number}", mechanism=weaker)
    rounds, budget = 4, ledger.terms.epsilon
    sigma = noise_multiplier_for(
        epsilon=budget,
        delta=DELTA,
        sampling_prob=0.3,
        steps=rounds * 25,
        prior_studies=ledger.history(),
        budget=budget,
    )
    planned = mechanism(noise_multiplier=sigma, local_steps=25)
    ledger.admit("planned", [Charge(mechanism=planned, steps=rounds * 25)], run="1")
    for number in range(rounds):
        pay(ledger, 10 + number, study="planned", mechanism=planned)
    assert budget - 0.01 < ledger.spent().epsilon <= budget


def test_runs_and_releases_are_listed(ledger: Ledger) -> None:
    pay(ledger, 1)
    ledger.mark_released("message-1", "ab12")
    pay(ledger, 2)
    pay(ledger, 3, run="second")
    first, second = ledger.spent().by_run
    assert (first.study, first.run, first.charges, first.released) == ("gliomas", "first", 2, 1)
    assert first.steps == 2 * STEPS
    assert first.epsilon == cost(2)
    assert (second.run, second.charges, second.released) == ("second", 1, 0)


def test_charges_that_were_never_released_are_reported_as_wasted(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        pay(ledger, number)
    assert ledger.spent().wasted_epsilon == cost(3)
    ledger.mark_released("message-2", "ab12")
    assert ledger.spent().wasted_epsilon == cost(2)
    assert ledger.spent().epsilon == cost(3)


def test_the_same_bytes_are_released_again_free_of_charge(ledger: Ledger) -> None:
    pay(ledger)
    ledger.mark_released("message-1", "ab12")
    head = ledger.head()
    ledger.mark_released("message-1", "ab12")
    assert ledger.head() == head


def test_other_bytes_need_another_charge(ledger: Ledger) -> None:
    pay(ledger)
    ledger.mark_released("message-1", "ab12")
    with pytest.raises(LedgerError, match="open charge"):
        ledger.mark_released("message-1", "cd34")
    pay(ledger)
    ledger.mark_released("message-1", "cd34")
    assert ledger.spent().by_run[0].released == 2


def test_nothing_is_released_without_a_charge(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="open charge"):
        ledger.mark_released("message-1", "ab12")


# --- admission


def test_an_affordable_study_is_admitted_without_spending(ledger: Ledger) -> None:
    planned = [Charge(mechanism=mechanism(), steps=50)]
    assert ledger.admit("gliomas", planned, run="1") == cost(10)
    assert ledger.spent().epsilon == 0
    assert ledger.head().sequence == 4


def test_an_unaffordable_study_is_refused_before_its_first_round(ledger: Ledger) -> None:
    pay(ledger)
    head = ledger.head()
    with pytest.raises(BudgetExceeded):
        ledger.admit("gliomas", [Charge(mechanism=mechanism(), steps=500)], run="1")
    assert ledger.head() == head


def test_an_empty_plan_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="planned charges"):
        ledger.admit("gliomas", [], run="1")


# --- purpose


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"noise_multiplier": 0.0}, "policy-noise"), ({"noise_origin": "seeded"}, "policy-seeded")],
)
def test_a_hospitals_cohort_refuses_weaker_noise(
    ledger: Ledger, changes: dict[str, Any], code: str
) -> None:
    weaker = mechanism(**changes)
    for attempt in (
        lambda: pay(ledger, mechanism=weaker),
        lambda: ledger.admit("gliomas", [Charge(mechanism=weaker, steps=1)], run="1"),
    ):
        with pytest.raises(PolicyRefused) as refused:
            attempt()
        assert refused.value.code == code
    assert ledger.head().sequence == 3


def test_open_data_records_a_baseline_as_infinite_and_still_limits_private_charges(
    open_data: Ledger,
) -> None:
    baseline = mechanism(noise_multiplier=0.0, noise_origin="seeded")
    pay(open_data, 1, mechanism=baseline, run="baseline")
    pay(open_data, 2)
    spent = open_data.spent()
    assert spent.epsilon == math.inf
    assert spent.private_epsilon == cost(1)
    assert [row.epsilon for row in spent.by_run] == [math.inf, cost(1)]
    assert open_data.history() == ((Charge(mechanism=mechanism(), steps=STEPS),),)
    with pytest.raises(BudgetExceeded):
        pay(open_data, 3, mechanism=mechanism(local_steps=500))
    pay(open_data, 4, mechanism=baseline, run="baseline")


# --- what may be written


@pytest.mark.parametrize("name", ["epsilon", "delta"])
@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf, True, "1", None])
def test_an_impossible_budget_or_delta_makes_no_ledger(
    tmp_path: Path, name: str, value: Any
) -> None:
    values: dict[str, Any] = {"epsilon": 8.0, "delta": DELTA, name: value}
    with pytest.raises(ValueError, match=f"Expected {name}"):
        Ledger.create(tmp_path / "ledger", cohort="DU", **values)
    assert not (tmp_path / "ledger").exists()


def test_an_unknown_purpose_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="purpose"):
        Ledger.create(
            tmp_path / "ledger",
            cohort="DU",
            epsilon=8.0,
            delta=DELTA,
            purpose="simulation",
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("round", value) for value in (0, -1, 1.0, True, "1", math.nan)),
        *(("study", value) for value in ("", "x" * 201, "two\nlines", 7, None)),
        *(("run", value) for value in ("", True)),
        *(("message_id", value) for value in ("", b"bytes", "\x00")),
    ],
)
def test_an_impossible_argument_is_refused_and_writes_nothing(
    ledger: Ledger, name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"Expected .*{name}"):
        pay(ledger, **{name: value})
    assert ledger.head().sequence == 3


def test_a_charge_row_tells_everything_that_was_decided(folder: Path, ledger: Ledger) -> None:
    pay(ledger)
    (body,) = (
        sqlite3.connect(folder / "ledger.sqlite")
        .execute("SELECT body FROM entries WHERE sequence = 4")
        .fetchone()
    )
    entry = json.loads(body)
    content = entry["content"]
    assert entry["kind"] == "charge"
    assert entry["time"].endswith("+00:00")
    assert Mechanism.from_dict(content["mechanism"]) == mechanism()
    assert content["steps"] == STEPS
    assert content["lifetime_epsilon"] == cost(1)
    assert (content["cohort"], content["delta"]) == ("DU", DELTA)
    assert content["accountant"].startswith("PLD of dp-accounting 0.6")


# --- opening


def test_charges_survive_closing(folder: Path, ledger: Ledger) -> None:
    pay(ledger)
    head = ledger.head()
    ledger.close()
    with Ledger.open(folder) as again:
        assert again.head() == head
        assert again.spent().epsilon == cost(1)


@pytest.mark.parametrize(
    "changes", [{"epsilon": 9.0}, {"delta": 1e-6}, {"cohort": "Duke"}, {"purpose": "open-data"}]
)
def test_a_site_file_that_was_changed_afterwards_is_noticed(
    ledger: Ledger, changes: dict[str, Any]
) -> None:
    terms: dict[str, Any] = {
        "cohort": "DU",
        "epsilon": 8.0,
        "delta": DELTA,
        "purpose": "hospital",
    }
    ledger.require(Terms(**terms))
    with pytest.raises(LedgerError, match="is fixed"):
        ledger.require(Terms(**{**terms, **changes}))


# --- crashes


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_after(point: str, folder: Path) -> None:
    ledger = Ledger.open(folder)
    if point == "opened":
        _kill()
    permit = pay(ledger, 1)
    if point == "stepped":
        permit.consume()
    if point == "charged twice":
        pay(ledger, 2)
    if point == "released":
        ledger.mark_released("message-1", "ab12")
    _kill()


@pytest.mark.parametrize(
    ("point", "charges", "released"),
    [
        ("opened", 0, 0),
        ("charged", 1, 0),
        ("stepped", 1, 0),
        ("charged twice", 2, 0),
        ("released", 1, 1),
    ],
)
def test_a_killed_process_leaves_at_least_as_much_charged_as_released(
    folder: Path, point: str, charges: int, released: int
) -> None:
    assert in_child(lambda: _killed_after(point, folder)) == -signal.SIGKILL
    with Ledger.open(folder) as ledger:
        ledger.verify()
        spent = ledger.spent()
        assert spent.epsilon == cost(charges)
        assert sum(row.charges for row in spent.by_run) == charges
        assert sum(row.released for row in spent.by_run) == released
        assert spent.wasted_epsilon == cost(charges - released)
        pay(ledger, 7)


def test_a_full_disk_refuses_the_charge_and_leaves_the_ledger_whole(folder: Path) -> None:
    def charge_with_no_room() -> None:
        ledger = Ledger.open(folder)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        pay(ledger)

    assert in_child(charge_with_no_room) == 4
    with Ledger.open(folder) as ledger:
        ledger.verify()
        assert ledger.spent().epsilon == 0


def test_a_charge_whose_head_cannot_be_kept_counts_but_permits_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("Expected to write the head, found: no space.")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_store, "write_head", fail)
        with pytest.raises(LedgerError, match="no space"):
            pay(ledger)
    assert ledger.spent().epsilon == cost(1)


# --- several processes


def test_processes_cannot_spend_the_same_budget(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with Ledger.create(folder, cohort="DU", epsilon=cost(5) + 0.01, delta=DELTA) as ledger:
        agreed(ledger, "a")

    def spend_until_refused(first_round: int) -> None:
        with Ledger.open(folder) as ledger:
            for number in range(first_round, 300, 3):
                pay(ledger, number, run="a")

    children = []
    for first in (1, 2, 3):
        child = os.fork()
        if child == 0:
            os._exit(in_child(lambda first=first: spend_until_refused(first)))
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    with Ledger.open(folder) as ledger:
        ledger.verify()
        assert ledger.head().sequence == 1 + 1 + 5
        assert ledger.spent().epsilon == cost(5)


def test_an_open_ledger_sees_what_another_process_charged(folder: Path, ledger: Ledger) -> None:
    def charge_elsewhere() -> None:
        with Ledger.open(folder) as other:
            pay(other)

    assert in_child(charge_elsewhere) == 0
    assert ledger.spent().epsilon == cost(1)
    pay(ledger, 2)
    assert ledger.head().sequence == 5
