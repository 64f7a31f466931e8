"""Where a ledger, or another chain, lies on disk: one SQLite file, and its head in a file apart.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from medfl.durable import sync_folder
from medfl.errors import LedgerError
from medfl.privacy.ledger.chain import GENESIS, Entry, read_entry
from medfl.privacy.ledger.head import HEAD, LedgerHead, read_head, write_head
from medfl.secret_files import exposures

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


def unsigned(entry: Entry) -> Entry:
    """An entry as it is: the ledger's own are signed when they are exported."""
    return entry


Sign = Callable[[Entry], Entry]


class LedgerStore:
    """An open ledger file; `entries` holds what has been read and checked so far.

    Attributes:
        noun: What the chain is called.
        database: Name of its file.
        way_on: What to do where it was restored from an old copy.
    """

    noun: ClassVar[str] = "ledger"
    database: ClassVar[str] = DATABASE
    way_on: ClassVar[str] = (
        "Restore the newest one, or go on with `medfl ledger acknowledge SITE.toml --reason ...`, "
        "which charges what is missing."
    )

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self.entries: list[Entry] = []

    @classmethod
    def create(
        cls, folder: Path, *, kind: str, content: Mapping[str, Any], sign: Sign = unsigned
    ) -> Self:
        """Make a ledger with its first entry; it appears complete or not at all.

        Args:
            folder: New or empty.
            kind: Of the entry.
            content: Of the entry; JSON types only.
            sign: See `append`.

        Raises:
            LedgerError: If the folder already has something in it, or cannot be written.
        """
        draft = None
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".ledger-", dir=folder.parent))  # mode 0700
            none = LedgerHead(sequence=0, hash=GENESIS)
            first = sign(_entry_after(none, kind=kind, content=content))
            _write_database(draft / cls.database, first)
            write_head(draft, LedgerHead(sequence=first.sequence, hash=first.hash))
            os.rename(draft, folder)  # noqa: PTH104  fails unless `folder` is new or empty
            sync_folder(folder.parent)
        except (OSError, sqlite3.Error) as error:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
            raise LedgerError(
                f"{folder}: expected a new or empty folder to make the {cls.noun} in, found: "
                f"{error}. An existing one is never replaced."
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
                f"{folder / cls.database}: expected the privacy ledger, found none. If this cohort "
                "never had one, make it with `medfl ledger init SITE.toml`; if it had, restore the "
                "newest copy."
            )
        store = cls._connected(folder)
        with store.closed_on_failure():
            store._check_file()
            store.refresh()
            if read_head(folder) != store.head:
                write_head(folder, store.head)  # a crash came between commit and head
        return store

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether there is a ledger's database in a folder."""
        return (folder / cls.database).is_file()

    @classmethod
    def require_private(cls, folder: Path) -> None:
        """Refuse a ledger that another account can read or write; a missing one is left to `open`.

        Raises:
            LedgerError: If the folder or one of its files is open.
        """
        found = exposures([folder, *folder.iterdir()]) if cls.is_in(folder) else []
        if found:
            raise LedgerError(str(found[0]))

    @classmethod
    def name_in(cls, folder: Path) -> str:
        """The name of the ledger in a folder; empty where none can be read."""
        try:
            with cls.open_old_copy(folder) as store:
                return store.name
        except (LedgerError, IndexError):
            return ""

    @classmethod
    def open_old_copy(cls, folder: Path) -> Self:
        """Open a ledger that may lag behind its head; for an administrator's acknowledgement only.

        Raises:
            LedgerError: If it is damaged or edited.
        """
        store = cls._connected(folder)
        with store.closed_on_failure():
            store._check_file()
            store._read_on()
        return store

    @classmethod
    def _connected(cls, folder: Path) -> Self:
        with cls._as_ledger_error(folder):
            connection = sqlite3.connect(
                f"{(folder / cls.database).resolve().as_uri()}?mode=rw",
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
        with self._as_ledger_error(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
        known = len(self.entries)
        try:
            self.refresh()
            known = len(self.entries)
            yield
            with self._as_ledger_error(self.folder):
                self._connection.execute("COMMIT")
        except BaseException:
            del self.entries[known:]
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        write_head(self.folder, self.head)

    def append(self, kind: str, content: Mapping[str, Any], *, sign: Sign = unsigned) -> Entry:
        """Add one entry; only inside `writing`, which makes it durable.

        Args:
            kind: Of the entry.
            content: Of the entry; JSON types only.
            sign: Gets the entry at its place in the chain and returns it signed.
        """
        entry = sign(_entry_after(self.head, kind=kind, content=content))
        with self._as_ledger_error(self.folder):
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
                f"another; the {self.noun} was edited or exchanged."
            )

    def _read_on(self) -> None:
        known = self.head
        with self._as_ledger_error(self.folder):
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
                    noun=self.noun,
                )
            )

    def verify(self) -> None:
        """Check the file's structure and every entry from the first, as `open` does.

        Raises:
            LedgerError: If anything is wrong.
        """
        self._check_file()
        with self._as_ledger_error(self.folder):
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

    @contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Close the file if the `with` block fails."""
        try:
            yield
        except BaseException:
            self.close()
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
        with self._as_ledger_error(self.folder):
            found = {
                name: self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in expected
            }
            schema = self._connection.execute("SELECT sql FROM sqlite_master").fetchall()
        if found != expected:
            raise LedgerError(
                f"{self.folder}: expected the {self.noun} with {expected}, found {found}."
            )
        if {sql for (sql,) in schema} != set(_SCHEMA):
            raise LedgerError(
                f"{self.folder}: expected the {self.noun}'s table and its append-only triggers, "
                "found others."
            )

    def _old_copy(self, head: LedgerHead) -> LedgerError:
        return LedgerError(
            f"{self.folder}: expected the {self.noun} to hold entry {head.sequence}, found it to "
            f"end before; it is a restored old copy. {self.way_on}"
        )

    @classmethod
    @contextmanager
    def _as_ledger_error(cls, folder: Path) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(
                f"{folder}: expected a readable and writable {cls.noun}, found: {error}."
            ) from None


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
