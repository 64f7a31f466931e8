"""The privacy ledger of one cohort, over all studies, runs and servers: charge, compute, release.

Every noisy step is paid for before it touches data, and nothing is ever paid back: a crash may
count too much, never too little. The budget is enforced here, at the hospital, whatever a server
believes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Self

from medfl.config.site import Purpose
from medfl.errors import BudgetExceeded, LedgerError, PolicyRefused
from medfl.privacy.accounting.accountant import lifetime_epsilon
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.accounting.reassessment import Reassessment, affected_steps, reassess
from medfl.privacy.ledger.allowance import agreement_of, require_allowed
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.ledger.head import LedgerHead
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.ledger.recount import accountant_version, json_number, recount
from medfl.privacy.ledger.scribe import Scribe
from medfl.privacy.ledger.spending import Record, RunSpent, Spent, by_run, records, spent
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.terms import Agreement, Terms, advice_on_change, check_name, terms_in
from medfl.privacy.ledger.testimony import Testimony
from medfl.privacy.ledger.witness import Witness
from medfl.privacy.mechanism import Mechanism

__all__ = ["Agreement", "Ledger", "LedgerHead", "Permit", "RunSpent", "Spent", "Terms"]

TOLERANCE = 1e-9
"""Rounding that is forgiven when a charge is compared with the budget, in epsilon."""


class Ledger:
    """One cohort's budget; use as a context manager, from one thread.

    Only `create` makes a ledger file; `open` fails closed where it is missing, damaged, edited or
    an old copy.
    """

    def __init__(
        self, store: LedgerStore, *, witness: Witness | None, scribe: Scribe | None = None
    ) -> None:
        self._store = store
        self._scribe = scribe
        self._testimony = Testimony(store=store, witness=witness)
        with store.closed_on_failure():
            self.terms = terms_in(store.entries)

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        cohort: str,
        epsilon: float,
        delta: float,
        purpose: Purpose = "hospital",
        witness: Witness | None = None,
        patients: Iterable[str] = (),
        held_out: Iterable[str] = (),
    ) -> Self:
        """Make the ledger of a cohort in a folder of its own (mode 0700).

        Args:
            folder: New or empty.
            cohort: Name of the cohort.
            epsilon: Lifetime budget.
            delta: Delta at which epsilon is read.
            purpose: See `Terms`.
            witness: What remembers this ledger apart from its folder; None where the ledger makes
                no lifetime claim.
            patients: The witness's marks of all patients whom it pays for.
            held_out: Those of patients of the cohort who do not train. Another secret of the site
                would have made another choice, so another ledger must not pay for them either.

        Raises:
            LedgerError: If there is something in the folder already, or if a ledger was there or
                pays for one of these patients.
            ValueError: If an argument is out of range.
        """
        terms = Terms(cohort=cohort, epsilon=epsilon, delta=delta, purpose=purpose)
        marks = frozenset(patients)
        with witness.locked() if witness is not None else nullcontext():
            if witness is not None:
                witness.require_unshared(patients=marks.union(held_out), folder=folder)
            store = LedgerStore.create(folder, kind="init", content=asdict(terms))
            ledger = cls(store, witness=witness)
            with store.closed_on_failure():
                ledger._testimony.note(patients=marks)
        return ledger

    @classmethod
    def open(
        cls, folder: Path, *, witness: Witness | None = None, scribe: Scribe | None = None
    ) -> Self:
        """Open a ledger and check its whole chain.

        Args:
            folder: Where it is.
            witness: What remembers it; required for a ledger that was made with one.
            scribe: Who writes down for an auditor what happens.

        Raises:
            LedgerError: If it is missing, damaged, edited, older than its head or than the witness
                remembers, unknown to the witness, or open to other accounts.
        """
        if witness is not None:
            LedgerStore.require_private(folder)
        store = LedgerStore.open(folder)
        ledger = cls(store, witness=witness, scribe=scribe)
        with store.closed_on_failure():
            ledger._testimony.require_newest()
        return ledger

    def require(self, terms: Terms) -> None:
        """Check that the ledger was made for what the site's file says now.

        Raises:
            LedgerError: If cohort, budget, delta or purpose differ.
        """
        if self.terms != terms:
            raise LedgerError(
                f"Expected a ledger made for {terms}, found {self.terms}. "
                f"{advice_on_change(self.entries())}"
            )

    def admit(self, study: str, planned: Sequence[Charge], *, run: str) -> float:
        """Record that all of a run fits the budget.

        Args:
            study: Name of the study.
            planned: All charges that the run will make, beyond those that it has made.
            run: Name of the run.

        Returns:
            Lifetime epsilon if all of it is carried out.

        Raises:
            BudgetExceeded: If it does not fit; nothing is written.
            PolicyRefused: If the cohort's purpose forbids a mechanism; nothing is written.
        """
        for name, value in (("study", study), ("run", run)):
            check_name(name, value)
        if not planned:
            raise ValueError("Expected planned charges, found none.")
        with self._writing():
            projected = self._project(planned, study=study, run=run)
            content = {
                "study": study,
                "run": run,
                "planned": [asdict(charge) for charge in planned],
                "lifetime_epsilon": json_number(projected),
            }
            self._store.append("admit", content)
        return projected

    def agree(self, run: str, agreement: Agreement, *, patients: Iterable[str] = ()) -> None:
        """Record what a run may do. There is one agreement a run; it is never replaced.

        Args:
            run: Identifier of the run.
            agreement: What it may do.
            patients: The witness's marks of the patients who take part.

        Raises:
            LedgerError: If the run has one already, or another ledger pays for one of the patients.
        """
        for name, value in (("run", run), ("study", agreement.study)):
            check_name(name, value)
        with self._writing(patients=frozenset(patients)):
            if agreement_of(self._store.entries, run=run) is not None:
                raise LedgerError("Expected a run without an agreement, found one.")
            self._store.append("agree", {"run": run, **agreement.to_dict()})

    def agreement(self, run: str) -> Agreement | None:
        """What a run may do, or None if the site never agreed to it."""
        self._store.refresh()
        return agreement_of(self._store.entries, run=run)

    def charge(
        self,
        *,
        study: str,
        run: str,
        round: int,  # noqa: A002
        message_id: str,
        mechanism: Mechanism,
        patients: Iterable[str] = (),
    ) -> Permit:
        """Pay for one round, durably, before any of it is computed.

        A message that is computed again is charged again, within what the run was agreed to.

        Args:
            study: Name of the study.
            run: Name of the run.
            round: Round, from 1.
            message_id: The server's message that asks for the round.
            mechanism: Mechanism of the round; its local steps are charged.
            patients: The witness's marks of those who can be drawn, as their images are now.

        Returns:
            The permit for these steps.

        Raises:
            BudgetExceeded: If it does not fit; nothing is written.
            PolicyRefused: If the cohort's purpose forbids the mechanism, or the run's agreement the
                charge (see `allowance.require_allowed`); nothing is written.
            LedgerError: If the ledger cannot be trusted or written, another copy of it was charged
                meanwhile, or another ledger pays for one of the patients.
        """
        for name, value in (("study", study), ("run", run), ("message_id", message_id)):
            check_name(name, value)
        if type(round) is not int or round < 1:
            raise ValueError(f"Expected a whole round >= 1, found {round!r}.")
        charge = Charge(mechanism=mechanism, steps=mechanism.local_steps)
        with self._writing(patients=frozenset(patients)):
            require_allowed(
                self._store.entries,
                run=run,
                round_number=round,
                message_id=message_id,
                steps=charge.steps,
            )
            content = {
                "study": study,
                "run": run,
                "round": round,
                "message_id": message_id,
                "mechanism": mechanism.to_dict(),
                "steps": charge.steps,
                "lifetime_epsilon": json_number(self._project([charge], study=study, run=run)),
                "cohort": self.terms.cohort,
                "delta": self.terms.delta,
                "accountant": accountant_version(),
            }
            self._store.append("charge", content)
        return Permit(charge)

    def mark_released(self, message_id: str, digest: str) -> None:
        """Record that a result is about to leave, against the newest open charge for its message.

        Sending the same bytes again is free and changes nothing.

        Args:
            message_id: The message that was charged.
            digest: Digest of the bytes that leave.

        Raises:
            LedgerError: If no charge pays for these bytes.
        """
        check_name("message_id", message_id)
        check_name("digest", digest)
        # What was paid for may leave, whatever has become of the scribe meanwhile.
        with self._writing(commits=False):
            charged = {
                sequence: record.digest
                for sequence, record in records(self._store.entries).items()
                if record.message_id == message_id
            }
            if digest in charged.values():
                return
            unreleased = [sequence for sequence, released in charged.items() if not released]
            if not unreleased:
                raise LedgerError(
                    "Expected an open charge for the message whose result leaves, found none."
                )
            self._store.append("release", {"charge": unreleased[-1], "digest": digest})

    def history(self) -> tuple[tuple[Charge, ...], ...]:
        """Charges with noise, run by run, as the budget counts them; see `spending.by_run`."""
        self._store.refresh()
        return by_run(records(self._store.entries).values())

    def steps(self, *, run: str) -> int:
        """Noisy steps that a run was charged for, lost ones too."""
        self._store.refresh()
        charged = records(self._store.entries).values()
        return sum(record.charge.steps for record in charged if record.run == run)

    def spent(self) -> Spent:
        """The state of the budget."""
        self._store.refresh()
        return spent(
            records(self._store.entries), budget=self.terms.epsilon, delta=self.terms.delta
        )

    def affected_steps(self) -> int:
        """Steps that an affected version was charged for, see `reassess`."""
        self._store.refresh()
        return affected_steps(records(self._store.entries).values())

    def reassess(self) -> Reassessment:
        """What the charges of an affected version really promise."""
        self._store.refresh()
        return reassess(
            records(self._store.entries).values(),
            budget=self.terms.epsilon,
            delta=self.terms.delta,
        )

    def entries(self) -> tuple[Entry, ...]:
        """The whole chain, for an auditor."""
        self._store.refresh()
        return tuple(self._store.entries)

    def recount(self) -> None:
        """Check the file, the chain, and that every run's last charge states the right total.

        Raises:
            LedgerError: If anything is wrong.
        """
        self.verify()
        recount(self._store.entries, terms=self.terms)

    def head(self) -> LedgerHead:
        """Sequence and hash of the newest entry, for the server to remember."""
        self._store.refresh()
        return self._store.head

    def verify(self) -> None:
        """Check the file, every entry and every hash again.

        Raises:
            LedgerError: If anything is wrong.
        """
        self._store.verify()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _writing(
        self, *, patients: frozenset[str] = frozenset(), commits: bool = True
    ) -> Iterator[None]:
        """Write one entry that commits patients to something, or not; see `Testimony.writing`."""
        if self._scribe is not None and commits:
            self._scribe.prepare(self._store.entries)
        with self._testimony.writing(patients=patients):
            if terms_in(self._store.entries) != self.terms:
                raise LedgerError(
                    "Expected the terms that this ledger was opened with, found that it was made "
                    "again meanwhile; nothing was written."
                )
            yield
        if self._scribe is not None:
            self._scribe.follow(self._store.entries)

    def _project(self, charges: Sequence[Charge], *, study: str, run: str) -> float:
        """Lifetime epsilon with these charges on top; raises where they are not allowed."""
        for charge in charges:
            self._check_purpose(charge.mechanism)
        new = [Record(study=study, run=run, message_id="", charge=charge) for charge in charges]
        history = by_run([*records(self._store.entries).values(), *new])
        budget, delta = self.terms.epsilon, self.terms.delta
        projected = lifetime_epsilon(history, delta=delta, budget=budget)
        if projected > budget + TOLERANCE:
            raise BudgetExceeded(
                f"Expected a lifetime epsilon <= {budget:g} (delta {delta:g}), found "
                f"{projected:.4f} with this charge; nothing was computed and nothing charged."
            )
        return projected if all(record.is_private for record in new) else math.inf

    def _check_purpose(self, mechanism: Mechanism) -> None:
        if self.terms.purpose == "open-data":
            return
        if not mechanism.is_private:
            raise PolicyRefused(
                "Expected noise in every step on a hospital's cohort, found noise_multiplier 0.",
                code="policy-noise",
            )
        if mechanism.noise_origin != "operating-system":
            raise PolicyRefused(
                "Expected noise from the operating system on a hospital's cohort, found "
                f"{mechanism.noise_origin!r}.",
                code="policy-seeded",
            )
