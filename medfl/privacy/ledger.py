"""The privacy ledger of one cohort, over all studies, runs and servers: charge, compute, release.

Every noisy step is paid for before it touches data, and nothing is ever paid back: a crash may
count too much, never too little. The budget is enforced here, at the hospital, whatever a server
believes.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from medfl.config.site import Purpose
from medfl.errors import BudgetExceeded, LedgerError, PermitExhausted, PolicyRefused
from medfl.privacy.accountant import lifetime_epsilon
from medfl.privacy.charges import Charge
from medfl.privacy.ledger_head import LedgerHead
from medfl.privacy.ledger_store import LedgerStore
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.spending import Record, RunSpent, Spent, by_study, records, spent

__all__ = ["Ledger", "LedgerHead", "Permit", "RunSpent", "Spent", "Terms"]

TOLERANCE = 1e-9
"""Rounding that is forgiven when a charge is compared with the budget, in epsilon."""

_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a ledger was made for; fixed for ever.

    Attributes:
        cohort: Name of the patients' cohort.
        epsilon: Lifetime budget.
        delta: Delta at which epsilon is read.
        purpose: ``hospital`` admits noise from the operating system only; ``open-data`` also admits
            baselines without noise, which are recorded as infinite and not held against the budget.
    """

    cohort: str
    epsilon: float
    delta: float
    purpose: Purpose

    def __post_init__(self) -> None:
        _check_name("cohort", self.cohort)
        _check_number("epsilon", self.epsilon, upper=math.inf)
        _check_number("delta", self.delta, upper=1.0)
        if self.purpose not in ("hospital", "open-data"):
            raise ValueError(f"Expected a known purpose, found {self.purpose!r}.")


class Permit:
    """Noisy steps that are paid for.

    Args:
        charge: What was charged.
    """

    def __init__(self, charge: Charge) -> None:
        self.charge = charge
        self._left = charge.steps

    def consume(self) -> None:
        """Spend one noisy step, before it touches data.

        Raises:
            PermitExhausted: If every charged step has been spent.
        """
        if self._left == 0:
            raise PermitExhausted(
                f"Expected at most the {self.charge.steps} noisy steps that were charged, "
                "found one more."
            )
        self._left -= 1


class Ledger:
    """One cohort's budget; use as a context manager, from one thread.

    Only `create` makes a ledger file; `open` fails closed where it is missing, damaged, edited or
    an old copy.
    """

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        first = store.entries[0]
        if first.kind != "init":
            store.close()
            raise LedgerError(f"Expected a ledger that begins with 'init', found {first.kind!r}.")
        self.terms = Terms(**first.content)

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        cohort: str,
        epsilon: float,
        delta: float,
        purpose: Purpose = "hospital",
    ) -> Self:
        """Make the ledger of a cohort in a folder of its own (mode 0700).

        Args:
            folder: New or empty.
            cohort: Name of the cohort.
            epsilon: Lifetime budget.
            delta: Delta at which epsilon is read.
            purpose: See `Terms`.

        Raises:
            LedgerError: If there is something in the folder already.
            ValueError: If an argument is out of range.
        """
        terms = Terms(cohort=cohort, epsilon=epsilon, delta=delta, purpose=purpose)
        return cls(LedgerStore.create(folder, kind="init", content=asdict(terms)))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a ledger and check its whole chain.

        Raises:
            LedgerError: If it is missing, damaged, edited or older than its head.
        """
        return cls(LedgerStore.open(folder))

    def require(self, terms: Terms) -> None:
        """Check that the ledger was made for what the site's file says now.

        Raises:
            LedgerError: If cohort, budget, delta or purpose differ.
        """
        if self.terms != terms:
            raise LedgerError(
                f"Expected a ledger made for {terms}, found {self.terms}. What a ledger was made "
                "for is fixed; change the site's file back."
            )

    def admit(self, study: str, planned: Sequence[Charge]) -> float:
        """Record that the site agrees to a study, if all of it fits the budget.

        Args:
            study: Name of the study.
            planned: All charges that the study will make, beyond those that it has made.

        Returns:
            Lifetime epsilon if all of it is carried out.

        Raises:
            BudgetExceeded: If it does not fit; nothing is written.
            PolicyRefused: If the cohort's purpose forbids a mechanism; nothing is written.
        """
        _check_name("study", study)
        if not planned:
            raise ValueError("Expected planned charges, found none.")
        with self._store.writing():
            projected = self._project(study, planned)
            content = {
                "study": study,
                "planned": [asdict(charge) for charge in planned],
                "lifetime_epsilon": _json_number(projected),
            }
            self._store.append("admit", content)
        return projected

    def charge(
        self,
        *,
        study: str,
        run: str,
        round: int,  # noqa: A002
        message_id: str,
        mechanism: Mechanism,
    ) -> Permit:
        """Pay for one round, durably, before any of it is computed.

        A message that is computed again is charged again.

        Args:
            study: Name of the study.
            run: Name of the run.
            round: Round, from 1.
            message_id: The server's message that asks for the round.
            mechanism: Mechanism of the round; its local steps are charged.

        Returns:
            The permit for these steps.

        Raises:
            BudgetExceeded: If it does not fit; nothing is written.
            PolicyRefused: If the cohort's purpose forbids the mechanism; nothing is written.
            LedgerError: If the ledger cannot be trusted or written.
        """
        for name, value in (("study", study), ("run", run), ("message_id", message_id)):
            _check_name(name, value)
        if type(round) is not int or round < 1:
            raise ValueError(f"Expected a whole round >= 1, found {round!r}.")
        charge = Charge(mechanism=mechanism, steps=mechanism.local_steps)
        with self._store.writing():
            content = {
                "study": study,
                "run": run,
                "round": round,
                "message_id": message_id,
                "mechanism": mechanism.to_dict(),
                "steps": charge.steps,
                "lifetime_epsilon": _json_number(self._project(study, [charge])),
                "cohort": self.terms.cohort,
                "delta": self.terms.delta,
                "accountant": _accountant_version(),
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
        _check_name("message_id", message_id)
        _check_name("digest", digest)
        with self._store.writing():
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

    def history(self, *, excluding_run: str = "") -> tuple[tuple[Charge, ...], ...]:
        """Charges with noise, study by study, as the budget counts them.

        A study that changed its mechanism appears once for each, since the change may have been
        chosen after seeing outputs.

        Args:
            excluding_run: A run that is left out, so that one that goes on after a crash is planned
                as it was at its start.
        """
        self._store.refresh()
        charged = records(self._store.entries).values()
        return by_study(record for record in charged if record.run != excluding_run)

    def spent(self) -> Spent:
        """The state of the budget."""
        self._store.refresh()
        return spent(
            records(self._store.entries), budget=self.terms.epsilon, delta=self.terms.delta
        )

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

    def _project(self, study: str, charges: Sequence[Charge]) -> float:
        """Lifetime epsilon with these charges on top; raises where they are not allowed."""
        for charge in charges:
            self._check_purpose(charge.mechanism)
        new = [Record(study=study, run="", message_id="", charge=charge) for charge in charges]
        history = by_study([*records(self._store.entries).values(), *new])
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


def _accountant_version() -> str:
    return f"PLD of dp-accounting {importlib.metadata.version('dp-accounting')}"


def _json_number(value: float) -> float | str:
    # JSON has no infinity; the chain's canonical form is strict JSON.
    return value if math.isfinite(value) else "infinite"


def _check_name(name: str, value: Any) -> None:
    if type(value) is not str or not value.isprintable() or not 1 <= len(value) <= _LONGEST_NAME:
        raise ValueError(
            f"Expected {name} to be 1 to {_LONGEST_NAME} printable characters, "
            f"found {str(value)[:_LONGEST_NAME]!r}."
        )


def _check_number(name: str, value: Any, *, upper: float) -> None:
    if type(value) is not float or not 0 < value < upper:
        raise ValueError(f"Expected {name} to be a number in (0, {upper:g}), found {value!r}.")
