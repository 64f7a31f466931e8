"""How a ledger goes on after it was lost, restored or moved, or was made by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from medfl.errors import LedgerError
from medfl.privacy.ledger.ledger import Ledger
from medfl.privacy.ledger.spending import charged_by_run, records
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.terms import Terms, check_name, require_unbound
from medfl.privacy.ledger.testimony import Testimony
from medfl.privacy.ledger.witness import LedgerMemory, Witness, missing_from


def acknowledge_loss(
    folder: Path,
    *,
    terms: Terms,
    witness: Witness,
    patients: Iterable[str],
    held_out: Iterable[str] = (),
    reason: str,
) -> Ledger:
    """Go on after a loss that the witness noticed; recorded, and nothing is forgiven.

    A ledger that was lost is made anew, and one that was restored from an old copy is taken
    back into use; both are charged at once for everything that the witness remembers and they
    do not hold. A ledger that the witness does not know, as after a move to another machine, is
    made known to it.

    Args:
        folder: Where the ledger is, or was.
        terms: What a new ledger is made for.
        witness: What remembers.
        patients: The witness's marks of all patients whom the ledger pays for.
        held_out: Those of patients of the cohort who do not train.
        reason: The administrator's words, for the ledger.

    Raises:
        LedgerError: If nothing is wrong, or if the ledger is damaged in another way.
        ValueError: If the reason is empty or not printable.
    """
    check_name("reason", reason)
    LedgerStore.require_private(folder)
    marks = frozenset(patients)
    asked = marks.union(held_out)
    with witness.locked():
        others = [each for each in witness.memories() if each.stands_for(asked, folder=folder)]
        return _go_on(
            folder, terms=terms, witness=witness, others=others, marks=marks, reason=reason
        )


def make_again(
    folder: Path,
    *,
    terms: Terms,
    witness: Witness,
    patients: Iterable[str],
    held_out: Iterable[str] = (),
) -> Ledger:
    """Give new terms and patients to a ledger that nothing was agreed to or charged to.

    Nothing is replaced: the new terms are an entry of the same ledger, after the old ones.

    Args:
        folder: Where the ledger is.
        terms: What it is made for from now on.
        witness: What remembers it.
        patients: The witness's marks of all patients whom it pays for from now on.
        held_out: Those of patients of the cohort who do not train.

    Raises:
        LedgerError: If it was used, cannot be trusted, or if another ledger pays for a patient.
    """
    LedgerStore.require_private(folder)
    marks = frozenset(patients)
    with witness.locked():
        store = LedgerStore.open(folder)
        with store.closed_on_failure():
            bond = Testimony(store=store, witness=witness)
            bond.require_newest()
            witness.require_unshared(
                patients=marks.union(held_out), folder=folder, other_than=store.name
            )
            with store.writing():
                require_unbound(store.entries)
                store.append("init", asdict(terms))
            bond.note(patients=marks, only_these=True)
        return Ledger(store, witness=witness)


def _go_on(
    folder: Path,
    *,
    terms: Terms,
    witness: Witness,
    others: list[LedgerMemory],
    marks: frozenset[str],
    reason: str,
) -> Ledger:
    here = str(folder.resolve())
    for memory in others:
        if memory.folder != here and LedgerStore.is_in(Path(memory.folder)):
            raise memory.already_stands()
    if LedgerStore.is_in(folder):
        store = LedgerStore.open_old_copy(folder)
    elif others:
        store = LedgerStore.create(folder, kind="init", content=asdict(terms))
    else:
        raise LedgerError(
            f"{folder}: expected a ledger or a witness that remembers one, found neither; make "
            "a first one with `medfl ledger init SITE.toml`."
        )
    ledger = Ledger(store, witness=witness)
    own = witness.recall(store.name)
    others = [memory for memory in others if memory.ledger != store.name]
    if own is not None and store.holds(own.head) and not others:
        ledger.close()
        raise LedgerError(f"{folder}: expected a loss to acknowledge, found the newest ledger.")
    remembered = [*([own] if own else []), *others]
    with store.writing_after_loss():
        lost = [{"ledger": memory.ledger, **asdict(memory.head)} for memory in remembered]
        store.append("acknowledge", {"reason": reason, "lost": lost})
        for memory in remembered:
            held = charged_by_run(records(store.entries))
            for each in missing_from(held, memory.charged):
                store.append("carry", each.to_dict())
    bond = Testimony(store=store, witness=witness)
    bond.note(patients=marks.union(*(memory.patients for memory in remembered)))
    for memory in others:
        witness.forget(memory.ledger)
    return ledger
