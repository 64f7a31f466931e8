"""`AuditLog`: who did what and when at a hospital, for an auditor: chained, signed, append-only.

It lies beside the ledger, in a file that is kept as durably. Each entry is signed by the site's key
of its time, so that after an exchange of keys nobody, the site itself included, can write an older
one again. What the ledger holds (agreements, charges, releases) is copied from it, entry by entry,
and what is missing here is made up for at the next occasion: a log that cannot be written loses no
charge. It does hold up the next one: a site that cannot be audited commits patients to nothing
further.

It names no patient, not even by a hash.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from medfl.config import SiteConfig
from medfl.errors import LedgerError, MedflError
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.ledger.store import LedgerStore
from medfl.protocol.keys import EVENT_KEY, KEYS, SiteKeys
from medfl.secret_files import account_name

AUDIT_LOG = "audit-log"
"""Folder of the log in the state folder."""

REFUSALS_A_DAY = 50
"""How many refusals a day are written down: a server must not fill the disk with them."""

Act = Literal["invitation", "pause", "resume", "leave"]
"""What people at the site do; `begin`, `keys`, `refusal` and the ledger's kinds come beside it."""

_OF_LEDGER = {
    "init": ("cohort", "epsilon", "delta"),
    "admit": ("study", "run"),
    "agree": ("study", "run", "proposal", "steps"),
    "charge": ("study", "run", "round", "steps"),
    "release": ("charge", "digest"),
    "acknowledge": (),
    "carry": ("study", "run", "steps"),
}
"""Which fields of the ledger's entries an auditor reads here; none of them names patients."""

logger = logging.getLogger(__name__)


class LogStore(LedgerStore):
    """The chain of the log on disk."""

    noun: ClassVar[str] = "audit log"
    database: ClassVar[str] = "log.sqlite"
    way_on: ClassVar[str] = "Restore the newest one."


class AuditLog:
    """The log of one hospital; it is begun with the first act that is written down.

    Args:
        state: The state folder, with the site's keys.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = state / AUDIT_LOG

    def note(self, act: Act, **content: str) -> None:
        """Write down what somebody did.

        Args:
            act: What.
            content: Its circumstances; nothing that names a patient.

        Raises:
            LedgerError: If the log is damaged or cannot be written.
            ConfigError: If the site has no keys to sign with, or others can read them.
        """
        with self._writing() as pen:
            pen.write(act, content)

    def note_exchanges(self) -> None:
        """Write down exchanges of the keys, which every other entry would do as well.

        Raises:
            LedgerError: If the log is damaged or cannot be written.
            ConfigError: If the site has no keys, or others can read them.
        """
        with self._writing():
            pass

    def note_refusal(self, code: str, *, message: str) -> None:
        """Write down that a message was refused, up to `REFUSALS_A_DAY`; never raises.

        Args:
            code: Why, by its fixed word.
            message: Kind of the message.
        """
        with _or_later(self._folder), self._writing() as pen:
            since = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="milliseconds")
            count = sum(each.kind == "refusal" and each.time > since for each in pen.store.entries)
            if count < REFUSALS_A_DAY:
                content = {"code": code, "message": message}
                if count == REFUSALS_A_DAY - 1:
                    content["more"] = "further ones of this day are in the site's own log only"
                pen.write("refusal", content)

    def catch_up(self, ledger: Sequence[Entry]) -> None:
        """Write down what the ledger holds and the log does not.

        Args:
            ledger: The ledger's chain from its first entry.

        Raises:
            LedgerError: If the log is damaged or cannot be written.
            ConfigError: If the site has no keys to sign with, or others can read them.
        """
        if not self._is_behind(ledger):
            return
        with self._writing() as pen:
            written = {entry.content.get("hash") for entry in pen.store.entries}
            for entry in ledger:
                if entry.hash not in written:
                    pen.write(entry.kind, of_ledger(entry, ledger=ledger[0].hash))

    def prepare(self, ledger: Sequence[Entry]) -> None:
        """Insist on a whole log that has caught up, before patients are committed to anything.

        Raises:
            LedgerError: If it is damaged or cannot be written; with the code of a refusal that
                comes before any charge.
        """
        try:
            self.catch_up(ledger)
        except (MedflError, OSError) as error:
            raise LedgerError(str(error), code="policy-log") from None

    def follow(self, ledger: Sequence[Entry]) -> None:
        """Catch up if that is possible now; what is done is done, and is made up for later."""
        with _or_later(self._folder):
            # Without keys nothing can be signed yet, as in a folder that is still being made.
            if (self._state / KEYS / EVENT_KEY).exists():
                self.catch_up(ledger)

    def entries(self) -> tuple[Entry, ...]:
        """The whole chain, checked; empty where nothing was written down yet.

        Raises:
            LedgerError: If it is damaged or edited.
        """
        if not self._is_begun():
            return ()
        with self._told(), LogStore.open(self._folder) as store:
            store.verify()
            return tuple(store.entries)

    def _is_behind(self, ledger: Sequence[Entry]) -> bool:
        if not self._is_begun():
            return True
        with self._told(), LogStore.open(self._folder) as store:
            written = {entry.content.get("hash") for entry in store.entries}
        return any(entry.hash not in written for entry in ledger)

    def _is_begun(self) -> bool:
        # A folder without its file is no log that was never begun.
        return self._folder.exists()

    @contextmanager
    def _writing(self) -> Iterator[_Pen]:
        with self._told():
            if not self._is_begun():
                self._begin()
            LogStore.require_private(self._folder)
            with LogStore.open(self._folder) as store, store.writing():
                # Under the lock, so that nobody signs with a key that has been exchanged.
                pen = _Pen(store, keys=SiteKeys.read(self._state / KEYS))
                pen.write_exchanges()
                yield pen

    def _begin(self) -> None:
        keys = SiteKeys.read(self._state / KEYS)
        content = _content({}, keys=keys)
        try:
            LogStore.create(
                self._folder, kind="begin", content=content, sign=lambda entry: _sign(entry, keys)
            ).close()
        except LedgerError:
            if not LogStore.is_in(self._folder):  # else another process was faster
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except LedgerError as error:
            raise LedgerError(
                f"{error} The ledger is not touched by this. Free space, or restore the newest "
                f"copy of {self._folder}; if there is none, move that folder away: a new log then "
                "begins, and says when.",
                code=error.code,
            ) from None


class _Pen:
    """Writes into an open log."""

    def __init__(self, store: LogStore, *, keys: SiteKeys) -> None:
        self.store = store
        self._keys = keys

    def write(self, kind: str, content: Mapping[str, Any]) -> None:
        signed = _content(content, keys=self._keys)
        self.store.append(kind, signed, sign=lambda entry: _sign(entry, self._keys))

    def write_exchanges(self) -> None:
        """Exchanges of the keys are part of the keys, so that none is missed."""
        written = {each.content["new"] for each in self.store.entries if each.kind == "keys"}
        for rotation in self._keys.rotations:
            if rotation.new not in written:
                self.write("keys", {"old": rotation.old, "new": rotation.new})


def audit_log_of(site: SiteConfig) -> AuditLog | None:
    """The log of a hospital; open data are nobody's, and have none."""
    return None if site.purpose == "open-data" else AuditLog(site.state)


def of_ledger(entry: Entry, *, ledger: str) -> dict[str, Any]:
    """How an entry of the ledger is written to the log.

    Args:
        entry: The entry.
        ledger: Name of the ledger.
    """
    known = _OF_LEDGER.get(entry.kind, ())
    # Entries of earlier versions lack some.
    fields = {name: entry.content[name] for name in known if name in entry.content}
    place = {"ledger": ledger, "entry": entry.sequence, "hash": entry.hash, "done": entry.time}
    return {**place, **fields}


def signed_part(entry: Entry) -> bytes:
    """What the signature of an entry covers: all of it, its place in the chain included."""
    content = {name: value for name, value in entry.content.items() if name != "signature"}
    return b"medfl audit log\0" + replace(entry, content=content).body.encode()


def _content(content: Mapping[str, Any], *, keys: SiteKeys) -> dict[str, Any]:
    return {**content, "account": account_name(os.geteuid()), "key": keys.event_key}


def _sign(entry: Entry, keys: SiteKeys) -> Entry:
    signature = keys.sign(signed_part(entry))
    return replace(entry, content={**entry.content, "signature": signature})


@contextmanager
def _or_later(folder: Path) -> Iterator[None]:
    try:
        yield
    except (MedflError, OSError) as error:
        logger.error("%s: something could not be written into the audit log: %s", folder, error)
