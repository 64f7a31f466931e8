"""The ledger against a simple model of it: any history of charges, crashes and old copies.

The model is a list of charges, the steps that each run was agreed to, and a number of entries.
Whatever is done in whatever order, the ledger holds what the model holds, never more than the
budget or than was agreed, and never less than before.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from medfl.errors import BudgetExceeded, LedgerError, PermitExhausted, PolicyRefused
from medfl.privacy.accounting.accountant import Charge, epsilon_prv, lifetime_epsilon
from medfl.privacy.ledger import ledger as module
from medfl.privacy.ledger.head import HEAD
from medfl.privacy.ledger.ledger import Agreement, Ledger, Permit
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.witness import Witness
from medfl.privacy.mechanism import Mechanism

DELTA = 1e-5
BUDGET = 4.0
FORGIVEN = 1e-9
PRV_ERROR = 0.03

STUDIES = some.sampled_from(["gliomas", "metastases"])
RUNS = some.sampled_from(["first", "second"])
MESSAGES = some.sampled_from(["a", "b", "c"])
NOISE = some.sampled_from([2.0, 4.0])
STEPS = some.sampled_from([1, 5])
ROUNDS = some.sampled_from([1, 2])
AGREED = some.sampled_from([0, 7, 100])


def mechanism(noise: float, steps: int) -> Mechanism:
    return Mechanism(
        sampling_prob=0.3,
        noise_multiplier=noise,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=steps,
        declared_patients=20,
    )


@dataclass
class Paid:
    """A charge as the model holds it, with what came of it."""

    study: str
    run: str
    round: int
    message: str
    noise: float
    steps: int
    permit: Permit
    trained: int = 0
    digest: str = ""


def lifetime(paid: list[tuple[str, str, float, int]]) -> float:
    """Lifetime epsilon of (study, run, noise, steps), grouped here and not by the ledger."""
    groups: dict[tuple[str, str, float], int] = {}
    for study, run, noise, steps in paid:
        groups[study, run, noise] = groups.get((study, run, noise), 0) + steps
    parts = [
        [Charge(mechanism=mechanism(noise, 1), steps=steps)]
        for (*_, noise), steps in groups.items()
    ]
    return lifetime_epsilon(parts, delta=DELTA, budget=BUDGET)


class LedgerMachine(RuleBasedStateMachine):
    """What a site, its crashes and its administrator can do to a ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="medfl-ledger-"))
        self.paid: list[Paid] = []
        self.agreed: dict[str, int] = {}
        self.lost: list[Ledger] = []
        self.entries = 1
        self.spent = 0.0
        self.digests = 0
        self.copied_at = 0

    @initialize()
    def make(self) -> None:
        self.ledger = Ledger.create(
            self.folder, cohort="DU", epsilon=BUDGET, delta=DELTA, witness=self.witness
        )
        self.agree("first", 100)

    @property
    def folder(self) -> Path:
        return self.root / "state" / "ledger"

    @property
    def witness(self) -> Witness:
        return Witness(self.root / "witness")

    def opened(self) -> Ledger:
        return Ledger.open(self.folder, witness=self.witness)

    def teardown(self) -> None:
        for ledger in [*self.lost, *([self.ledger] if hasattr(self, "ledger") else [])]:
            ledger.close()
        shutil.rmtree(self.root)
        # Another library's view of everything charged, which no error in grouping can please.
        charges = [Charge(mechanism=mechanism(p.noise, 1), steps=p.steps) for p in self.paid]
        assert epsilon_prv(charges, delta=DELTA) <= BUDGET + PRV_ERROR

    # --- what the site does

    @rule(study=STUDIES, run=RUNS, noise=NOISE, steps=STEPS, rounds=some.sampled_from([1, 3, 50]))
    def admit(self, study: str, run: str, noise: float, steps: int, rounds: int) -> None:
        planned = [Charge(mechanism=mechanism(noise, steps), steps=rounds * steps)]
        expected = self.with_another(study, run, noise, rounds * steps)
        if expected > BUDGET + FORGIVEN:
            with pytest.raises(BudgetExceeded):
                self.ledger.admit(study, planned, run=run)
        else:
            assert self.ledger.admit(study, planned, run=run) == expected
            self.entries += 1

    @rule(run=RUNS, steps=AGREED)
    def agree(self, run: str, steps: int) -> None:
        agreement = Agreement(
            study="gliomas",
            proposal="0" * 64,
            mechanism=mechanism(2.0, 1),
            members=frozenset({"a"}),
            steps=steps,
        )
        if run in self.agreed:
            with pytest.raises(LedgerError, match="without an agreement"):
                self.ledger.agree(run, agreement)
            return
        self.ledger.agree(run, agreement)
        self.agreed[run] = steps
        self.entries += 1

    @rule(study=STUDIES, run=RUNS, number=ROUNDS, message=MESSAGES, noise=NOISE, steps=STEPS)
    def charge(
        self, study: str, run: str, number: int, message: str, noise: float, steps: int
    ) -> None:
        self.charge_by(self.ledger, study, run, number, message, noise, steps)

    @rule(study=STUDIES, run=RUNS, number=ROUNDS, message=MESSAGES, noise=NOISE, steps=STEPS)
    def charge_by_a_second_handle(
        self, study: str, run: str, number: int, message: str, noise: float, steps: int
    ) -> None:
        with self.opened() as second:
            self.charge_by(second, study, run, number, message, noise, steps)

    @precondition(lambda self: self.paid)
    @rule(which=some.integers(0, 1000), steps=some.integers(1, 6))
    def train(self, which: int, steps: int) -> None:
        paid = self.paid[which % len(self.paid)]
        for _ in range(steps):
            if paid.trained == paid.steps:
                with pytest.raises(PermitExhausted):
                    paid.permit.consume()
            else:
                paid.permit.consume()
                paid.trained += 1

    @rule(message=MESSAGES)
    def release(self, message: str) -> None:
        self.digests += 1
        digest = f"digest-{self.digests}"
        unreleased = [p for p in self.paid if p.message == message and not p.digest]
        if not unreleased:
            with pytest.raises(LedgerError, match="open charge"):
                self.ledger.mark_released(message, digest)
            return
        self.ledger.mark_released(message, digest)
        unreleased[-1].digest = digest
        self.entries += 1

    @precondition(lambda self: any(p.digest for p in self.paid))
    @rule(which=some.integers(0, 1000))
    def release_again(self, which: int) -> None:
        released = [p for p in self.paid if p.digest]
        paid = released[which % len(released)]
        self.ledger.mark_released(paid.message, paid.digest)

    # --- what happens to the site

    @rule()
    def crash(self) -> None:
        # A dead process closes nothing: SQLite's log stays as it is.
        self.lost.append(self.ledger)
        self.ledger = self.opened()

    @rule()
    def copy(self) -> None:
        self.copy_ledger(self.folder, self.root / "copy")
        self.copied_at = self.entries

    @precondition(lambda self: self.copied_at)
    @rule(with_head=some.booleans())
    def restore_the_copy(self, *, with_head: bool) -> None:
        self.close_all()
        self.copy_ledger(self.folder, self.root / "newest")
        self.copy_ledger(self.root / "copy", self.folder)
        if not with_head:
            shutil.copy(self.root / "newest" / HEAD, self.folder)
        if self.copied_at < self.entries:
            with pytest.raises(LedgerError, match="restored old copy"):
                self.opened()
        self.copy_ledger(self.root / "newest", self.folder)
        self.ledger = self.opened()

    # --- what holds at every point

    @invariant()
    def nothing_is_lost_and_nothing_refunded(self) -> None:
        if not hasattr(self, "ledger"):
            return
        spent = self.ledger.spent()
        assert spent.epsilon == spent.private_epsilon == self.with_another()
        assert self.spent <= spent.epsilon <= BUDGET + FORGIVEN
        self.spent = spent.epsilon
        assert self.ledger.head().sequence == self.entries
        assert sum(row.charges for row in spent.by_run) == len(self.paid)
        assert sum(row.steps for row in spent.by_run) == sum(p.steps for p in self.paid)
        released = [p for p in self.paid if p.digest]
        assert sum(row.released for row in spent.by_run) == len(released)
        for run in {p.run for p in self.paid}:
            assert sum(p.steps for p in self.paid if p.run == run) <= self.agreed[run]
        wasted = [(p.study, p.run, p.noise, p.steps) for p in self.paid if not p.digest]
        assert spent.wasted_epsilon == lifetime(wasted)

    def charge_by(
        self,
        ledger: Ledger,
        study: str,
        run: str,
        number: int,
        message: str,
        noise: float,
        steps: int,
    ) -> None:
        asked: dict[str, Any] = {
            "study": study,
            "run": run,
            "round": number,
            "message_id": message,
            "mechanism": mechanism(noise, steps),
        }
        code = self.refusal(run, number, message, steps)
        if code:
            with pytest.raises(PolicyRefused) as refused:
                ledger.charge(**asked)
            assert refused.value.code == code
            return
        if self.with_another(study, run, noise, steps) > BUDGET + FORGIVEN:
            with pytest.raises(BudgetExceeded):
                ledger.charge(**asked)
            return
        permit = ledger.charge(**asked)
        self.paid.append(Paid(study, run, number, message, noise, steps, permit))
        self.entries += 1

    def refusal(self, run: str, number: int, message: str, steps: int) -> str:
        """The code of what the agreement of a run does not allow; empty if it does."""
        if run not in self.agreed:
            return "policy-not-agreed"
        of_run = [p for p in self.paid if p.run == run]
        if any(p.round == number and p.message != message for p in of_run):
            return "policy-round"
        charged = sum(p.steps for p in of_run)
        return "policy-steps" if charged + steps > self.agreed[run] else ""

    def with_another(
        self, study: str = "", run: str = "", noise: float = 0.0, steps: int = 0
    ) -> float:
        """Lifetime epsilon of the model's charges, with another one if steps are given."""
        paid = [(p.study, p.run, p.noise, p.steps) for p in self.paid]
        return lifetime([*paid, (study, run, noise, steps)] if steps else paid)

    def close_all(self) -> None:
        for ledger in (*self.lost, self.ledger):
            ledger.close()
        self.lost = []

    def copy_ledger(self, source: Path, target: Path) -> None:
        """Copy database, log and head; the index of the log is for open files only."""
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*-shm"))


def explore(*, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_no_history_makes_the_ledger_differ_from_its_model() -> None:
    explore(examples=20, steps=25)


def refund(monkeypatch: pytest.MonkeyPatch) -> None:
    """A released charge no longer counts."""
    records = module.records
    monkeypatch.setattr(
        module,
        "records",
        lambda entries: {k: v for k, v in records(entries).items() if not v.digest},
    )


def a_step_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permit allows one more step than was charged."""
    charge = Ledger.charge

    def generous(self: Ledger, **asked: Any) -> Permit:
        paid = charge(self, **asked).charge
        return Permit(Charge(mechanism=paid.mechanism, steps=paid.steps + 1))

    monkeypatch.setattr(Ledger, "charge", generous)


def no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every charge fits."""
    monkeypatch.setattr("medfl.privacy.ledger.ledger.TOLERANCE", math.inf)


def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the witness remembers is believed to be in the ledger."""
    monkeypatch.setattr(LedgerStore, "holds", lambda *_: True)


def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every charge is within what was agreed."""
    monkeypatch.setattr(module, "require_allowed", lambda *_, **__: None)


@pytest.mark.slow
@pytest.mark.parametrize("bug", [refund, a_step_too_many, no_budget, no_memory, no_limit])
def test_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        explore(examples=20, steps=25)
