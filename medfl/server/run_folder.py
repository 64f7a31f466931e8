"""`RunFolder`: everything that a run writes, under the names and records of `medfl.runs`.

Tables grow line by line, so that a killed run leaves what it had, and a line that a crash has torn
counts as not written; checkpoints replace each other atomically.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from medfl.config import StudyConfig
from medfl.durable import write_atomically
from medfl.errors import FederationError, ReportError
from medfl.protocol.messages import Declaration, Scores, Weights
from medfl.protocol.secure_round import Members
from medfl.runs import metrics_table
from medfl.runs.attendance import Attendance
from medfl.runs.files import (
    ATTENDANCE,
    DECLARATIONS,
    EVENTS,
    ROUNDS,
    RUN,
    STUDY,
    UNDELIVERED,
    WAITING,
    Document,
    Lines,
)
from medfl.runs.records import (
    DeclaredAfter,
    Event,
    Round,
    RunIdentity,
    Score,
    SiteRound,
    Variant,
)

ROUNDS_CSV = "rounds.csv"
ROUND_COLUMNS = ("round", "site", *SiteRound.model_fields)

ROSTER = Document("roster.json", TypeAdapter(Members))
"""Who is added up in a secure sum; the same from the first round to the last."""

SUM_ROUND = Document("sum_round.json", TypeAdapter(int))
"""The newest round of a secure sum that was begun."""

_UPDATES = "updates"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """What the server needs to go on after a crash."""

    run: str
    round: int
    weights: Weights
    average: Weights
    moments: dict[str, torch.Tensor]


class RunFolder:
    """The files of one run.

    Args:
        path: Made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)

    def begin(self, *, run: str, study: StudyConfig) -> None:
        """Write down which run of which study this folder holds."""
        self.write(STUDY, study)
        self.write(RUN, RunIdentity(run=run, study=study.digest))

    def run_id(self) -> str:
        """Identifier of the run.

        Raises:
            FederationError: If ``run.json`` is missing or damaged.
        """
        identity = self._identity()
        if identity is None or not identity.run:
            raise FederationError(f"{self.path}: expected a readable run.json, found none.")
        return identity.run

    def study_digest(self) -> str:
        """Digest of the study that was begun here; empty text if none was."""
        identity = self._identity()
        return "" if identity is None else identity.study

    def write(self, file: Document[T], value: T) -> None:
        """Replace one of the files that hold one value."""
        write_atomically(self.path / file.name, file.text(value).encode())

    def roster(self) -> Members:
        """The sites of the run's secure sums; nobody before they were asked.

        Raises:
            ReportError: If the file is damaged.
        """
        return ROSTER.read(self.path) if (self.path / ROSTER.name).exists() else {}

    def begun_sum(self) -> int:
        """The newest round of a secure sum that was begun; 0 if none was.

        Raises:
            ReportError: If the file is damaged.
        """
        return SUM_ROUND.read(self.path) if (self.path / SUM_ROUND.name).exists() else 0

    def updates(self, round_number: int) -> Path:
        """Where the updates of a round lie until they are averaged; nothing outlives the round."""
        return self.path / _UPDATES / str(round_number)

    def forget_round(self) -> None:
        """Remove what is here for the current round only."""
        (self.path / WAITING.name).unlink(missing_ok=True)
        if (self.path / _UPDATES).exists():
            shutil.rmtree(self.path / _UPDATES)

    def append_event(self, event: Event) -> None:
        """Append one line to the federation ledger, durable before this returns."""
        self._append(EVENTS, event)

    def events(self) -> list[Event]:
        """The federation ledger's lines.

        Raises:
            FederationError: If a line is damaged.
        """
        return self._read(EVENTS)

    def append_declaration(self, declaration: Declaration, *, after_events: int) -> None:
        """Append what a site declared, and how many events came before it."""
        text = declaration.model_dump_json()
        self._append(DECLARATIONS, DeclaredAfter(after_events=after_events, declaration=text))

    def declarations(self) -> list[tuple[int, Declaration]]:
        """Every declaration of this run, with the number of events before it.

        Raises:
            FederationError: If a line is damaged.
        """
        try:
            return [
                (line.after_events, Declaration.model_validate_json(line.declaration))
                for line in self._read(DECLARATIONS)
            ]
        except ValueError:
            raise FederationError(
                f"{self.path / DECLARATIONS.name}: expected declarations, found a damaged line."
            ) from None

    def append_attendance(self, attendance: Attendance) -> None:
        """Append one start of the run: who takes no part in it."""
        self._append(ATTENDANCE, attendance)

    def attendance(self) -> list[Attendance]:
        """Every start of the run.

        Raises:
            FederationError: If a line is damaged.
        """
        return self._read(ATTENDANCE)

    def append_round(self, record: Round) -> None:
        """Append one round to ``rounds.jsonl`` and ``rounds.csv``."""
        self._append(ROUNDS, record.model_copy(update={"seconds": round(record.seconds, 3)}))
        rows = [
            {"round": record.round, "site": name, **at.model_dump()}
            for name, at in record.sites.items()
        ]
        self._append_rows(ROUNDS_CSV, ROUND_COLUMNS, rows)

    def append_scores(
        self, scores: Iterable[Scores], *, variant: Variant, round_number: int
    ) -> None:
        """Append one row a patient and region to ``metrics.csv``."""
        rows = [
            metrics_table.row_of(
                Score(
                    variant=variant,
                    round=round_number,
                    site=of_site.site,
                    patient=score.patient,
                    region=score.region,
                    dice=score.dice,
                    hd95_mm=score.hd95_mm,
                    lesion_dice=score.lesion_dice,
                    lesion_hd95_mm=score.lesion_hd95_mm,
                )
            )
            for of_site in scores
            for score in of_site.scores
        ]
        self._widen(metrics_table.NAME, metrics_table.COLUMNS)
        self._append_rows(metrics_table.NAME, metrics_table.COLUMNS, rows)

    def write_checkpoint(self, name: str, content: bytes) -> Path:
        """Write a model file under ``checkpoints``."""
        path = self.path / "checkpoints" / f"{name}.safetensors"
        write_atomically(path, content)
        return path

    def write_state(self, state: ServerState, *, study: StudyConfig) -> None:
        """Replace the server's checkpoint."""
        parts = {"weights": state.weights, "average": state.average, "moments": state.moments}
        tensors = {
            f"{part}/{name}": value
            for part, named in parts.items()
            for name, value in named.items()
        }
        metadata = {"run": state.run, "round": str(state.round), "study": study.digest}
        content = save(_contiguous(tensors), metadata=metadata)
        write_atomically(self.path / "checkpoints" / "state.safetensors", content)

    def read_state(self, *, study: StudyConfig) -> ServerState | None:
        """The server's last checkpoint, or None before the first.

        Raises:
            FederationError: If it is damaged or belongs to another study.
        """
        path = self.path / "checkpoints" / "state.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            round_number, run, digest = int(metadata["round"]), metadata["run"], metadata["study"]
        except (SafetensorError, KeyError, TypeError, ValueError):
            raise FederationError(
                f"{path}: expected a server checkpoint, found a damaged file.", code="checkpoint"
            ) from None
        if digest != study.digest:
            raise FederationError(
                f"{path}: expected the study file that this run began with (digest {digest[:12]}),"
                f" found another (digest {study.digest[:12]}).",
                code="checkpoint",
            )
        return ServerState(
            run=run,
            round=round_number,
            weights=_part(tensors, "weights"),
            average=_part(tensors, "average"),
            moments=_part(tensors, "moments"),
        )

    def rounds(self) -> list[Round]:
        """The finished rounds.

        Raises:
            FederationError: If a line is damaged.
        """
        return self._read(ROUNDS)

    def scores(self) -> tuple[Score, ...]:
        """The rows of ``metrics.csv``; none where no site shares metrics.

        Raises:
            ReportError: If one is damaged.
        """
        return metrics_table.read_scores(self.path)

    def undelivered(self) -> dict[str, str]:
        """Hospitals that do not have the final model, with the code of the reason.

        Raises:
            ReportError: If the file is damaged.
        """
        if not (self.path / UNDELIVERED.name).exists():
            return {}
        return UNDELIVERED.read(self.path)

    def truncate_tables(self, *, after_round: int, variant: Variant) -> None:
        """Drop table rows later than the checkpoint, which a resumed run writes again."""
        kept = [line for line in self.rounds() if line.round <= after_round]
        text = "".join(ROUNDS.line(line) for line in kept)
        write_atomically(self.path / ROUNDS.name, text.encode())
        self._filter_rows(ROUNDS_CSV, ROUND_COLUMNS, lambda row: int(row["round"]) <= after_round)
        self._filter_rows(
            metrics_table.NAME,
            metrics_table.COLUMNS,
            lambda row: row["variant"] != variant or int(row["round"]) <= after_round,
        )

    def _identity(self) -> RunIdentity | None:
        try:
            return RUN.read(self.path)
        except ReportError:
            return None

    def _append(self, file: Lines[T], value: T) -> None:
        with (self.path / file.name).open("a+b") as stream:
            _cut_torn_line(stream)
            stream.write(file.line(value).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _append_rows(
        self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        path = self.path / name
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            if new:
                writer.writeheader()
            writer.writerows(rows)

    def _widen(self, name: str, columns: Sequence[str]) -> None:
        """Give a table that an earlier version began the columns of this one."""
        path = self.path / name
        if path.exists() and _whole_lines(path).partition("\n")[0].strip() != ",".join(columns):
            self._filter_rows(name, columns, lambda _row: True)

    def _filter_rows(self, name: str, columns: Sequence[str], keep: Any) -> None:
        path = self.path / name
        if not path.exists():
            return
        reader = csv.DictReader(io.StringIO(_whole_lines(path), newline=""))
        rows = [row for row in reader if keep(row)]
        kept = io.StringIO(newline="")
        writer = csv.DictWriter(kept, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, kept.getvalue().encode())

    def _read(self, file: Lines[T]) -> list[T]:
        path = self.path / file.name
        if not path.exists():
            return []
        lines = _whole_lines(path).splitlines()
        try:
            return [file.kind.validate_json(line) for line in lines]
        except ValueError:
            raise FederationError(f"{path}: expected JSON lines, found a damaged one.") from None


# Nobody has acted on a line without its end: a power failure or a full disk came before the line
# was durable. What a site was charged in it is in the site's next signed statement.
def _whole_lines(path: Path) -> str:
    text = path.read_bytes().decode()
    return text[: text.rfind("\n") + 1]


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


# A copy of each: safetensors refuses tensors that share memory, as weights and average do at first.
def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    prefix = part + "/"
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
