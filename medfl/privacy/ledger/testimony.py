"""What one ledger tells the witness of its machine, and what it hears from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from medfl.errors import LedgerError
from medfl.privacy.ledger.spending import charged_by_run, records
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.witness import LedgerMemory, Witness


@dataclass(frozen=True, kw_only=True)
class Testimony:
    """The bond between an open ledger and the witness.

    Attributes:
        store: The ledger.
        witness: What remembers it; None for a ledger that makes no lifetime claim.
    """

    store: LedgerStore
    witness: Witness | None

    @contextmanager
    def writing(self, *, patients: frozenset[str] = frozenset()) -> Iterator[None]:
        """Write to the ledger with the witness asked before and told after, as one act.

        The witness's lock is held all the while, so that no other ledger gets one of the patients
        and no other copy of this one gets a charge in between.

        Args:
            patients: The witness's marks of patients whom the ledger pays for from now on.

        Raises:
            LedgerError: If this is an old copy, another ledger pays for one of the patients, or
                something cannot be written. What the witness cannot note counts, but permits
                nothing.
        """
        with self.witness.locked() if self.witness is not None else nullcontext():
            with self.store.writing():
                if self.witness is not None:
                    self._require_held(self._recall(self.witness))
                if self.witness is not None and patients:
                    self.witness.require_unshared(
                        patients=patients, folder=self.store.folder, other_than=self.store.name
                    )
                yield
            self.note(patients=patients)

    def require_newest(self) -> None:
        """Check that the witness knows the ledger, and nothing that it does not hold.

        Raises:
            LedgerError: If it is unknown, or a restored old copy.
        """
        if self.witness is None:
            return
        known = self._recall(self.witness)
        if not self.store.holds(known.head):
            # Another process may have been charged since the entries were read.
            self.store.refresh()
        self._require_held(known)

    def note(self, *, patients: frozenset[str] = frozenset(), only_these: bool = False) -> None:
        """Tell the witness of the ledger as it is; only under its lock.

        Args:
            patients: The witness's marks of patients whom the ledger pays for.
            only_these: Whether it pays for nobody else: so far it has paid for nothing.

        Raises:
            LedgerError: If it cannot be noted.
        """
        if self.witness is None:
            return
        known = None if only_these else self.witness.recall(self.store.name)
        self.witness.note(
            LedgerMemory(
                ledger=self.store.name,
                folder=str(self.store.folder.resolve()),
                head=self.store.head,
                charged=charged_by_run(records(self.store.entries)),
                patients=patients | (known.patients if known else frozenset()),
            )
        )

    def _require_held(self, known: LedgerMemory) -> None:
        if not self.store.holds(known.head):
            raise LedgerError(
                f"{self.store.folder}: expected the ledger to hold entry {known.head.sequence}, "
                "which the witness remembers, found it without; it is a restored old copy. Restore "
                "the newest one, or go on with `medfl ledger acknowledge SITE.toml --reason ...`, "
                "which charges what is missing."
            )

    def _recall(self, witness: Witness) -> LedgerMemory:
        known = witness.recall(self.store.name)
        if known is None:
            raise LedgerError(
                f"{self.store.folder}: expected a ledger that this machine's witness knows, found "
                f"an unknown one ({witness.folder}). Run medfl under the account that made the "
                "ledger. If it was moved here from another machine, say so with `medfl ledger "
                "acknowledge SITE.toml --reason ...`."
            )
        return known
