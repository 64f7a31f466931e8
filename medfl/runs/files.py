"""The files of a run folder, each with the record that it holds: one place for both sides.

Documents are replaced as a whole. Tables grow line by line, so that a killed run leaves what it
had.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from medfl.config import StudyConfig
from medfl.errors import ReportError
from medfl.json_text import to_json
from medfl.runs.attendance import Attendance
from medfl.runs.audit_records import Audit
from medfl.runs.records import (
    DeclaredAfter,
    Environment,
    Event,
    Federation,
    Plan,
    Pretraining,
    Round,
    RunIdentity,
    Site,
    SitePrivacy,
    Summary,
)
from medfl.runs.waiting import Waiting

T = TypeVar("T")


@dataclass(frozen=True)
class Document(Generic[T]):
    """A file that holds one value.

    Attributes:
        name: In the run folder.
        kind: Reads and writes the value.
    """

    name: str
    kind: TypeAdapter[T]

    def text(self, value: T) -> str:
        """The file's content.

        Raises:
            ValueError: If a number in it is NaN.
        """
        return to_json(self.kind.dump_python(value, mode="json"), indent=2) + "\n"

    def read(self, folder: Path) -> T:
        """The value in a run folder.

        Raises:
            ReportError: If the file is missing, or breaks a rule of its record.
        """
        path = folder / self.name
        return parsed(text_of(path), self.kind, where=str(path))


@dataclass(frozen=True)
class Lines(Generic[T]):
    """A file that holds one value a line.

    Attributes:
        name: In the run folder.
        kind: Reads and writes one value.
    """

    name: str
    kind: TypeAdapter[T]

    def line(self, value: T) -> str:
        """One line, without what says nothing.

        Raises:
            ValueError: If a number in it is NaN.
        """
        values: Any = self.kind.dump_python(value, mode="json", exclude_defaults=True)
        return to_json(values) + "\n"

    def read(self, folder: Path) -> tuple[T, ...]:
        """The values in a finished run folder.

        Raises:
            ReportError: If the file is missing, or a line breaks a rule of its record.
        """
        path = folder / self.name
        return tuple(
            parsed(line, self.kind, where=f"{path}: line {number}")
            for number, line in enumerate(text_of(path).splitlines(), start=1)
        )


STUDY = Document("study.json", TypeAdapter(StudyConfig))
RUN = Document("run.json", TypeAdapter(RunIdentity))
ENVIRONMENT = Document("environment.json", TypeAdapter(Environment))
SITES = Document("sites.json", TypeAdapter(tuple[Site, ...]))
PLAN = Document("plan.json", TypeAdapter(tuple[Plan, ...]))
PRIVACY = Document("privacy.json", TypeAdapter(tuple[SitePrivacy, ...]))
FEDERATION = Document("federation.json", TypeAdapter(Federation))
SUMMARY = Document("summary.json", TypeAdapter(Summary))
AUDIT = Document("audit.json", TypeAdapter(Audit))
PRETRAINING = Document("pretraining.json", TypeAdapter(Pretraining))
WAITING = Document("waiting.json", TypeAdapter(Waiting))
UNDELIVERED = Document("undelivered.json", TypeAdapter(dict[str, str]))
"""Hospitals that did not get the final model, with the code of the reason."""

FINAL_MODEL = Path("checkpoints") / "final.safetensors"
"""The model that a finished run ends with."""

ROUNDS = Lines("rounds.jsonl", TypeAdapter(Round))
ATTENDANCE = Lines("attendance.jsonl", TypeAdapter(Attendance))
"""One line for each time that the sites were asked whether they take part."""

EVENTS = Lines("federation_ledger.jsonl", TypeAdapter(Event))
DECLARATIONS = Lines("declarations.jsonl", TypeAdapter(DeclaredAfter))


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        ReportError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: expected a readable file, found: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path}: expected UTF-8 text, found other bytes") from None


def parsed(text: str, kind: TypeAdapter[T], *, where: str) -> T:
    """A value from its JSON text.

    Args:
        text: The text.
        kind: What it has to be.
        where: File, and line if there are several, for the error.

    Raises:
        ReportError: If the text breaks a rule of its record.
    """
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"]) or "(whole text)"
        raise ReportError(
            f"{where}: key {key}: {detail['msg']}, found {str(detail['input'])[:80]!r}"
        ) from None
