"""`RunBook`: one record for each run of a server, and the way to a run that no terminal holds.

A run is known by the id that its messages and the hospitals' ledgers carry; it keeps the id when it
goes on with ``--resume``. Whether it is under way is told by a lock, which the system releases when
the process that follows the run dies, and a wish to stop it is a file, which that process looks
for: no process is ever told from its number, which another one may have by now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from medfl.config.files import Section
from medfl.deployment.lock import exclusive, is_held
from medfl.durable import write_atomically
from medfl.errors import ConfigError, FederationError, MedflError

# Who only looks holds the lock for a moment.
_PATIENCE_SECONDS = 2.0

Outcome = Literal["", "completed", "stopped", "failed"]


class RunStopped(FederationError):
    """Somebody stopped the run on purpose."""


class RunRecord(Section):
    """One run, as its newest start left it.

    Attributes:
        run: Its id.
        study: Name of the study.
        out: Its run folder.
        began: When it was started, or went on, for the last time.
        process: The process that follows it, for people.
        detached: Whether it runs without a terminal.
        ended: When it ended; None while it is under way, or if its process was killed.
        outcome: How; empty while nobody knows.
        reason: Why it failed.
    """

    run: str
    study: str
    out: Path
    began: AwareDatetime
    process: int
    detached: bool = False
    ended: AwareDatetime | None = None
    outcome: Outcome = ""
    reason: str = ""

    @classmethod
    def begin(cls, run: str, *, study: str, out: Path, detached: bool) -> RunRecord:
        """A run that this process starts now."""
        now = datetime.now(UTC).replace(microsecond=0)
        return cls(run=run, study=study, out=out, began=now, process=os.getpid(), detached=detached)

    def ending(self, outcome: Outcome, *, reason: str = "") -> RunRecord:
        """The same, at its end."""
        now = datetime.now(UTC).replace(microsecond=0)
        return self.model_copy(update={"ended": now, "outcome": outcome, "reason": reason})


class RunBook:
    """The records of one server.

    Args:
        folder: Where they are; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def records(self) -> list[RunRecord]:
        """Every run, the one that was started last at the end.

        Raises:
            ConfigError: If a record is damaged.
        """
        found = [self._read(path) for path in sorted(self._folder.glob("*.json"))]
        return sorted(found, key=lambda record: record.began)

    def find(self, name: str) -> RunRecord:
        """The run that somebody means.

        Args:
            name: Its id, the beginning of it, or its run folder.

        Raises:
            ConfigError: If there is none, or there are several.
        """
        records = self.records()
        exact = [record for record in records if record.run == name]
        folder = [record for record in records if record.out == Path(name).resolve()]
        found = exact or folder or [record for record in records if record.run.startswith(name)]
        if len(found) == 1 and name:
            return found[0]
        known = ", ".join(record.run for record in found or records) or "no run yet"
        raise ConfigError(
            f"Expected {'more of the id of a run' if found else 'a run of this server'} "
            f"({known}), found {name!r}."
        )

    def under_way(self) -> list[RunRecord]:
        """The runs that somebody follows now.

        Raises:
            ConfigError: If a record is damaged.
        """
        return [record for record in self.records() if self.is_under_way(record)]

    def is_under_way(self, record: RunRecord) -> bool:
        """Whether somebody follows a run now."""
        return is_held(self._beside(record, "lock"))

    def state(self, record: RunRecord) -> str:
        """How a run is, in words."""
        if self.is_under_way(record):
            return "stopping" if self.is_to_stop(record) else "under way"
        if record.outcome == "failed":
            return f"failed: {record.reason}"
        return record.outcome or "interrupted: the process that followed it was killed"

    def log(self, record: RunRecord) -> Path:
        """Where the progress of a run is written."""
        return self._beside(record, "log")

    @contextmanager
    def following(self, record: RunRecord) -> Iterator[None]:
        """Be, within a `with` block, the process that follows a run; its end is written down.

        Raises:
            FederationError: If another process follows it.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as stack:
            lock = self._beside(record, "lock")
            stack.enter_context(exclusive(lock, noun="a run", patience_seconds=_PATIENCE_SECONDS))
            self._beside(record, "stop").unlink(missing_ok=True)
            self._write(record)
            try:
                yield
            except BaseException as error:
                self._write(_ended(record, error))
                raise
            self._write(record.ending("completed"))

    def ask_to_stop(self, record: RunRecord) -> None:
        """Let the process that follows a run end it."""
        self._beside(record, "stop").touch(mode=0o600)

    def is_to_stop(self, record: RunRecord) -> bool:
        """Whether somebody wants a run to be stopped."""
        return self._beside(record, "stop").exists()

    def _beside(self, record: RunRecord, suffix: str) -> Path:
        return self._folder / f"{record.run}.{suffix}"

    def _write(self, record: RunRecord) -> None:
        content = record.model_dump_json(indent=2).encode()
        write_atomically(self._beside(record, "json"), content, mode=0o600)

    @staticmethod
    def _read(path: Path) -> RunRecord:
        try:
            return RunRecord.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            raise ConfigError(f"{path}: expected the record of a run, found damage.") from None


def require_under_way(book: RunBook, record: RunRecord) -> None:
    """Refuse a run that has ended.

    Raises:
        ConfigError: If it has; it says when and how.
    """
    if not book.is_under_way(record):
        when = f" at {record.ended:%Y-%m-%d %H:%M} UTC" if record.ended else ""
        raise ConfigError(f"{record.run} is not under way; it ended{when}: {book.state(record)}")


def wait_until_ended(
    book: RunBook, record: RunRecord, *, seconds: float, wait: Callable[[float], object]
) -> RunRecord:
    """Wait for a run that was asked to stop.

    Args:
        book: Its server's.
        record: The run.
        seconds: How long at most.
        wait: Called between two looks, with seconds.

    Returns:
        The record of its end.

    Raises:
        FederationError: If it goes on.
    """
    step = 0.5
    for _ in range(int(seconds / step)):
        if not book.is_under_way(record):
            return book.find(record.run)
        wait(step)
    raise FederationError(
        f"{record.run} did not end within {seconds:g} s: process {record.process} "
        "still follows it. It was asked to stop, and ends as soon as it notices."
    )


def named(records: Sequence[RunRecord]) -> str:
    """Runs for a message."""
    return ", ".join(f"{record.run} (in {record.out})" for record in records)


def _ended(record: RunRecord, error: BaseException) -> RunRecord:
    if isinstance(error, RunStopped | KeyboardInterrupt | SystemExit):
        return record.ending("stopped")
    told = str(error) if isinstance(error, MedflError | OSError) else repr(error)
    return record.ending("failed", reason=told)
