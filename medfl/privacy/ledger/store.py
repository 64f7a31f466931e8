"""Where a ledger lies on disk: one SQLite file of chained entries, and its head in a file apart.

Entries are appended under SQLite's write lock with full synchronisation, so that what `append` has
returned survives a power failure. The head (sequence and hash of the newest entry) is written after
the commit: it may lag behind the database, never lead it. A database that lacks the head's entry is
therefore an old copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from medfl.durable import sync_folder
from medfl.errors import LedgerError
from medfl.privacy.ledger.chain import GENESIS, Entry, read_entry
from medfl.privacy.ledger.head import HEAD, LedgerHead, read_head, write_head

DATABASE = "ledger.sqlite"

_APPLICATION = 0x6D656466  # "medf", in SQLite's application_id
_VERSION = 1
_BUSY_SECONDS = 30.0
_INSERT = "INSERT INTO entries VALUES (?, ?, ?)"
_SCHEMA = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
)


class LedgerStore:
    """An open ledger file; `entries` holds what has been read and checked so far."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self.entries: list[Entry] = []

    @classmethod
    def create(cls, folder: Path, *, kind: str, content: Mapping[str, Any]) -> Self:
        """Make a ledger with its first entry; it appears complete or not at all.

        Raises:
            LedgerError: If the folder already has something in it, or cannot be written.
        """
        draft = None
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".ledger-", dir=folder.parent))  # mode 0700
            first = _entry_after(LedgerHead(sequence=0, hash=GENESIS), kind=kind, content=content)
            _write_database(draft / DATABASE, first)
            write_head(draft, LedgerHead(sequence=first.sequence, hash=first.hash))
            os.rename(draft, folder)  # noqa: PTH104  fails unless `folder` is new or empty
            sync_folder(folder.parent)
        except (OSError, sqlite3.Error) as error:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
            raise LedgerError(
                f"{folder}: expected a new or empty folder to make a ledger in, found: {error}. "
                "An existing ledger is never replaced."
            ) from None
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a ledger and check all of it.

        Raises:
            LedgerError: If it is missing, damaged, edited, or older than its head.
        """
        if not cls.is_in(folder):
            raise LedgerError(
                f"{folder / DATABASE}: expected the privacy ledger, found none. If this cohort "
                "never had one, make it with `medfl ledger init SITE.toml`; if it had, restore the "
                "newest copy."
            )
        store = cls._connected(folder)
        try:
            store._check_file()
            store.refresh()
            if read_head(folder) != store.head:
                write_head(folder, store.head)  # a crash came between commit and head
        except BaseException:
            store.close()
            raise
        return store

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether there is a ledger's database in a folder."""
        return (folder / DATABASE).is_file()

    @classmethod
    def open_old_copy(cls, folder: Path) -> Self:
        """Open a ledger that may lag behind its head; for an administrator's acknowledgement only.

        Raises:
            LedgerError: If it is damaged or edited.
        """
        store = cls._connected(folder)
        try:
            store._check_file()
            store._read_on()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _connected(cls, folder: Path) -> Self:
        with _as_ledger_error(folder):
            connection = sqlite3.connect(
                f"{(folder / DATABASE).resolve().as_uri()}?mode=rw",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
            )
            connection.execute("PRAGMA synchronous = FULL")
        return cls(folder, connection)

    @property
    def head(self) -> LedgerHead:
        """Sequence and hash of the newest entry that was read."""
        if not self.entries:
            return LedgerHead(sequence=0, hash=GENESIS)
        return LedgerHead(sequence=self.entries[-1].sequence, hash=self.entries[-1].hash)

    @property
    def name(self) -> str:
        """Hash of the first entry, which holds its time: no two ledgers share it."""
        return self.entries[0].hash

    def holds(self, head: LedgerHead) -> bool:
        """Whether an entry is part of this ledger."""
        return (
            head.sequence <= len(self.entries) and self.entries[head.sequence - 1].hash == head.hash
        )

    @contextmanager
    def writing_after_loss(self) -> Iterator[None]:
        """As `writing`, in a store from `open_old_copy`: its end becomes the head."""
        write_head(self.folder, self.head)
        with self.writing():
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock, with all entries of other processes read; commit at the end.

        An exception inside rolls back, and nothing was written.

        Raises:
            LedgerError: If the database cannot be locked or written, or the head not be kept.
        """
        with _as_ledger_error(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
        known = len(self.entries)
        try:
            self.refresh()
            known = len(self.entries)
            yield
            with _as_ledger_error(self.folder):
                self._connection.execute("COMMIT")
        except BaseException:
            del self.entries[known:]
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        write_head(self.folder, self.head)

    def append(self, kind: str, content: Mapping[str, Any]) -> Entry:
        """Add one entry; only inside `writing`, which makes it durable."""
        entry = _entry_after(self.head, kind=kind, content=content)
        with _as_ledger_error(self.folder):
            self._connection.execute(_INSERT, (entry.sequence, entry.body, entry.hash))
        self.entries.append(entry)
        return entry

    def refresh(self) -> None:
        """Read and check entries that were added since; the known ones have to be still there.

        Raises:
            LedgerError: If the database is damaged, edited, or older than what was known.
        """
        kept = read_head(self.folder)  # before the entries: another process may be adding some
        self._read_on()
        if kept.sequence > len(self.entries):
            raise self._old_copy(kept)
        if not self.holds(kept):
            raise LedgerError(
                f"{self.folder}: expected entry {kept.sequence} with the hash of {HEAD}, found "
                "another; the ledger was edited or exchanged."
            )

    def _read_on(self) -> None:
        known = self.head
        with _as_ledger_error(self.folder):
            rows = self._connection.execute(
                "SELECT sequence, body, hash FROM entries WHERE sequence >= ? ORDER BY sequence",
                (known.sequence,),
            ).fetchall()
        if known.sequence and (not rows or rows.pop(0)[2] != known.hash):
            raise self._old_copy(known)
        for _, body, stored_hash in rows:
            before = self.head
            self.entries.append(
                read_entry(
                    body,
                    sequence=before.sequence + 1,
                    previous=before.hash,
                    stored_hash=stored_hash,
                )
            )

    def verify(self) -> None:
        """Check the file's structure and every entry from the first, as `open` does.

        Raises:
            LedgerError: If anything is wrong.
        """
        self._check_file()
        with _as_ledger_error(self.folder):
            found = self._connection.execute("PRAGMA integrity_check").fetchall()
        if found != [("ok",)]:
            raise LedgerError(f"{self.folder}: expected an intact database, found {found[:3]}.")
        known, self.entries = self.entries, []
        try:
            self.refresh()
            if self.entries[: len(known)] != known:
                raise self._old_copy(LedgerHead(sequence=len(known), hash=known[-1].hash))
        except LedgerError:
            self.entries = known  # so that the next charge notices as well
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_file(self) -> None:
        expected = {
            "journal_mode": "wal",
            "synchronous": 2,
            "application_id": _APPLICATION,
            "user_version": _VERSION,
        }
        with _as_ledger_error(self.folder):
            found = {
                name: self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in expected
            }
            schema = self._connection.execute("SELECT sql FROM sqlite_master").fetchall()
        if found != expected:
            raise LedgerError(f"{self.folder}: expected a ledger with {expected}, found {found}.")
        if {sql for (sql,) in schema} != set(_SCHEMA):
            raise LedgerError(
                f"{self.folder}: expected the ledger's table and its append-only triggers, "
                "found others."
            )

    def _old_copy(self, head: LedgerHead) -> LedgerError:
        return LedgerError(
            f"{self.folder}: expected the ledger to hold entry {head.sequence}, found it to end "
            "before; it is a restored old copy. Restore the newest one, or go on with `medfl "
            "ledger acknowledge SITE.toml --reason ...`, which charges what is missing."
        )


def _entry_after(head: LedgerHead, *, kind: str, content: Mapping[str, Any]) -> Entry:
    return Entry(
        sequence=head.sequence + 1,
        previous=head.hash,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        kind=kind,
        content=content,
    )


def _write_database(path: Path, first: Entry) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(_INSERT, (first.sequence, first.body, first.hash))
    finally:
        connection.close()


@contextmanager
def _as_ledger_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(
            f"{folder}: expected a readable and writable ledger, found: {error}."
        ) from None
