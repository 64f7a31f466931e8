"""`Witness`: what this machine remembers of its ledgers, in a folder apart from all of them.

A ledger alone cannot tell that it was deleted, or restored together with its head, or that a second
one was made for the same patients. The witness can: it keeps the newest head of every ledger, what
was charged to it, and keyed hashes of the patients that it pays for. It never forgets a charge; an
administrator who has lost a ledger gets a new one that begins with what was spent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medfl.durable import write_atomically
from medfl.errors import ConfigError, LedgerError
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.ledger.head import LedgerHead
from medfl.privacy.ledger.witness_lock import exclusive
from medfl.privacy.ledger.witness_place import witness_files, witness_folder
from medfl.privacy.mechanism import Mechanism
from medfl.secret_files import KEY_BYTES, Exposure, exposures, secret_key

_KEY = "witness.key"
_LOCK = "witness.lock"
_OF_THE_KEY = "key"  # what is marked to tell one key from another


@dataclass(frozen=True, kw_only=True)
class RunCharge:
    """Noisy steps of one run with one mechanism."""

    study: str
    run: str
    charge: Charge

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        mechanism = self.charge.mechanism.to_dict()
        return {
            "study": self.study,
            "run": self.run,
            "mechanism": mechanism,
            "steps": self.charge.steps,
        }


@dataclass(frozen=True, kw_only=True)
class LedgerMemory:
    """What is remembered of one ledger.

    Attributes:
        ledger: Hash of its first entry, which names it.
        folder: Where it was; local knowledge, never sent.
        head: Its newest entry.
        charged: Everything that it was charged for.
        patients: Keyed hashes of the patients that it pays for.
    """

    ledger: str
    folder: str
    head: LedgerHead
    charged: tuple[RunCharge, ...]
    patients: frozenset[str]

    def stands_for(self, patients: frozenset[str], *, folder: Path) -> bool:
        """Whether it pays for one of these patients, or was in this folder."""
        return bool(self.patients & patients) or self.folder == str(folder.resolve())

    def is_no_open_data(self) -> LedgerError:
        """The error for a site that takes one of its patients for open data."""
        return LedgerError(
            f"Expected open data, found patients whom the ledger at {self.folder} pays for: they "
            "are a hospital's. Use them through that hospital's site file, with the purpose "
            "'hospital'. If these are other people under the same names, rename their folders.",
            code="ledger-elsewhere",
        )

    def already_stands(self) -> LedgerError:
        """The error for a site that wants another ledger in its place."""
        return LedgerError(
            f"Expected patients and a folder without a ledger, found the ledger at {self.folder} "
            f"(entry {self.head.sequence}), which was there or pays for some of them; it is never "
            "replaced. Use or restore that one; if it is lost, go on with `medfl ledger "
            "acknowledge SITE.toml --reason ...`, which charges what it had spent. One that "
            "nothing was agreed to gets other terms by `medfl ledger init SITE.toml --again`.",
            code="ledger-elsewhere",
        )


class Witness:
    """The memory of all ledgers on this machine.

    Args:
        folder: Made with mode 0700 at the first note.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_this_machine(cls) -> Self:
        """The witness that every site of this machine, or of this account, shares.

        Raises:
            LedgerError: If it is there and cannot be used, see `witness_place`, or if another
                account can read or write it.
        """
        witness = cls(witness_folder())
        found = witness.exposures()
        if found:
            raise LedgerError(str(found[0]))
        return witness

    def exposures(self) -> list[Exposure]:
        """What lets others at the folder or at something in it."""
        return exposures(witness_files(self._folder))

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude every other writer, for as long as it takes to ask, write and note.

        Never to be nested, and never to be held while anything is computed.

        Raises:
            LedgerError: If it cannot be had.
        """
        with exclusive(self._folder / _LOCK):
            yield

    def mark(self, text: str) -> str:
        """A keyed hash by which a patient is known here; the key never leaves the folder."""
        (found,) = self.marks([text])
        return found

    def marks(self, texts: Iterable[str]) -> frozenset[str]:
        """The same of several."""
        secret = self._secret()
        return frozenset(
            hmac.new(secret, text.encode(), hashlib.sha256).hexdigest() for text in texts
        )

    def recall(self, ledger: str) -> LedgerMemory | None:
        """What is remembered of a ledger, or None if it is unknown.

        Raises:
            LedgerError: If the memory is damaged.
        """
        path = self._path(ledger)
        return self._read(path) if path in self._files() else None

    def sharing(
        self, *, patients: Iterable[str], folder: Path, other_than: str = ""
    ) -> LedgerMemory | None:
        """A ledger that pays for one of these patients already, or that was in this folder.

        Args:
            patients: Keyed hashes from `mark`.
            folder: A ledger's folder.
            other_than: A ledger that may do so.

        Raises:
            LedgerError: If a memory is damaged.
        """
        wanted = frozenset(patients)
        for memory in self.memories():
            if memory.ledger != other_than and memory.stands_for(wanted, folder=folder):
                return memory
        return None

    def memories(self) -> list[LedgerMemory]:
        """All ledgers.

        Raises:
            LedgerError: If a memory is damaged.
        """
        return [self._read(path) for path in self._files()]

    def require_unshared(
        self, *, patients: Iterable[str], folder: Path, other_than: str = ""
    ) -> None:
        """Refuse patients or a folder that belong to another ledger; see `sharing`.

        Raises:
            LedgerError: If there is one.
        """
        known = self.sharing(patients=patients, folder=folder, other_than=other_than)
        if known is not None:
            raise known.already_stands()

    def note(self, memory: LedgerMemory) -> None:
        """Remember the newest state of a ledger, durably.

        Raises:
            LedgerError: If it cannot be written.
        """
        content = {
            "ledger": memory.ledger,
            "folder": memory.folder,
            "sequence": memory.head.sequence,
            "hash": memory.head.hash,
            "charged": [each.to_dict() for each in memory.charged],
            "patients": sorted(memory.patients),
            "key": self.mark(_OF_THE_KEY),
        }
        path = self._path(memory.ledger)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content).encode(), mode=0o600)
        except OSError as error:
            raise LedgerError(
                f"{path}: what the witness remembers could not be written: {error}."
            ) from None

    def forget(self, ledger: str) -> None:
        """Drop a ledger whose charges another one has taken over."""
        self._path(ledger).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [path for path in witness_files(self._folder)[1:] if path.suffix == ".json"]

    def _read(self, path: Path) -> LedgerMemory:
        memory, key = _read(path)
        # An earlier version noted no key.
        if key is not None and key != self.mark(_OF_THE_KEY):
            raise LedgerError(
                f"{path}: expected what was noted with {self._folder / _KEY}, found the mark of "
                "another key. Without the right one no patient is known again; restore it."
            )
        return memory

    def _path(self, ledger: str) -> Path:
        return self._folder / f"{ledger}.json"

    def _secret(self) -> bytes:
        path = self._folder / _KEY
        if not path.exists() and self._files():
            raise LedgerError(
                f"{path}: expected the key of what the witness remembers, found none. Without it "
                "no patient is known again; restore it."
            )
        try:
            secret = secret_key(path)
        except ConfigError as error:
            raise LedgerError(str(error)) from None
        except OSError as error:
            raise LedgerError(f"{path}: expected the witness's key, found: {error}.") from None
        if len(secret) != KEY_BYTES:
            raise LedgerError(f"{path}: expected {KEY_BYTES} bytes, found {len(secret)}.")
        return secret


def missing_from(charged: Sequence[RunCharge], remembered: Sequence[RunCharge]) -> list[RunCharge]:
    """What the witness remembers and a ledger does not hold, run by run."""
    held: dict[tuple[str, str, Mechanism], int] = {}
    for each in charged:
        key = (each.study, each.run, each.charge.mechanism)
        held[key] = held.get(key, 0) + each.charge.steps
    missing = []
    for each in remembered:
        mechanism = each.charge.mechanism
        steps = each.charge.steps - held.get((each.study, each.run, mechanism), 0)
        if steps > 0:
            charge = Charge(mechanism=mechanism, steps=steps)
            missing.append(RunCharge(study=each.study, run=each.run, charge=charge))
    return missing


def _read(path: Path) -> tuple[LedgerMemory, str | None]:
    """What is remembered of a ledger, and the mark of the key that its patients are marked with."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        memory = LedgerMemory(
            ledger=content["ledger"],
            folder=content["folder"],
            head=LedgerHead(sequence=content["sequence"], hash=content["hash"]),
            charged=tuple(
                RunCharge(
                    study=each["study"],
                    run=each["run"],
                    charge=Charge(
                        mechanism=Mechanism.from_dict(each["mechanism"]), steps=each["steps"]
                    ),
                )
                for each in content["charged"]
            ),
            patients=frozenset(content["patients"]),
        )
        return memory, content.get("key")
    except (OSError, KeyError, TypeError, ValueError):
        raise LedgerError(
            f"{path}: expected what the witness remembers of a ledger, found a damaged file. "
            "Restore it; nothing is computed without it."
        ) from None
