"""A consistent copy of a chain, as of a ledger, that may be written to at the same time."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from medfl.errors import LedgerError
from medfl.privacy.ledger.head import LedgerHead, write_head
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.testimony import Testimony
from medfl.privacy.ledger.witness import Witness


def copy_ledger(folder: Path, *, to: Path, witness: Witness) -> tuple[str, LedgerHead]:
    """Copy the newest ledger, and check the copy.

    A ledger that could not be charged is not copied: it would replace the only good backup of an
    administrator who keeps one.

    Args:
        folder: Where the ledger is.
        to: A new folder.
        witness: What remembers it.

    Returns:
        The ledger's name, and the head of the copy.

    Raises:
        LedgerError: If it is missing, damaged, edited, or older than its head or than the witness
            remembers, or if the copy cannot be made.
    """
    with LedgerStore.open(folder) as store:
        Testimony(store=store, witness=witness).require_newest()
        known = store.head
    return _copy(LedgerStore, folder, to=to, known=known)


def copy_chain(kind: type[LedgerStore], folder: Path, *, to: Path) -> tuple[str, LedgerHead]:
    """Copy a chain as it is, and check the copy.

    Args:
        kind: What keeps it.
        folder: Where it is.
        to: A new folder.

    Returns:
        The chain's name, and the head of the copy.

    Raises:
        LedgerError: If it is missing, damaged, edited, or older than its head, or if the copy
            cannot be made.
    """
    with kind.open(folder) as store:
        known = store.head
    return _copy(kind, folder, to=to, known=known)


def _copy(
    kind: type[LedgerStore], folder: Path, *, to: Path, known: LedgerHead
) -> tuple[str, LedgerHead]:
    """Copy a chain that was checked up to a head, which the copy has to hold."""
    to.mkdir(mode=0o700)
    os.close(os.open(to / kind.database, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    _back_up(folder / kind.database, to / kind.database)
    with kind.open_old_copy(to) as copy:  # it has no head yet
        if not copy.holds(known):
            raise LedgerError(f"{folder}: expected a chain that only grows, found another one.")
        write_head(to, copy.head)
        copy.verify()
        return copy.name, copy.head


def check_copy(folder: Path, *, kind: type[LedgerStore] = LedgerStore) -> tuple[str, LedgerHead]:
    """Check a copy from its first entry to its head, and give its name and head.

    Raises:
        LedgerError: If it is damaged, edited, or older than its head.
    """
    with kind.open(folder) as store:
        store.verify()
        return store.name, store.head


def _back_up(source: Path, target: Path) -> None:
    try:
        # For writing: SQLite may have to make the index of the write-ahead log.
        reader = sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30.0)
        writer = sqlite3.connect(target)
        try:
            reader.backup(writer)  # one moment of the source, whatever is written meanwhile
        finally:
            writer.close()
            reader.close()
    except sqlite3.Error as error:
        raise LedgerError(f"{source}: expected a chain to copy, found: {error}.") from None
