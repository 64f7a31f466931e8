"""`RunFolder`: everything that a run writes, under fixed names.

`medfl.reporting` reads the same files; nothing else is shared between the two. Tables grow line by
line, so that a killed run leaves what it had, and a line that a crash has torn counts as not
written; checkpoints replace each other atomically.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from medfl.config import StudyConfig
from medfl.durable import write_atomically
from medfl.errors import FederationError
from medfl.json_text import to_json
from medfl.protocol.messages import Declaration, Scores, Weights

METRIC_COLUMNS = ("variant", "round", "site", "patient", "region", "dice", "hd95_mm")
ROUND_COLUMNS = ("round", "site", "outcome", "code", "epsilon", "budget", "steps")

_UPDATES = "updates"
_WAITING = "waiting.json"


@dataclass(frozen=True, kw_only=True)
class SiteOutcome:
    """What became of one site's part in a round.

    Attributes:
        outcome: ``admitted``; ``refused`` by the site; ``rejected`` by the server; ``silent``.
        code: Why, if not admitted.
        epsilon: The site's epsilon of this run so far, recomputed from its events.
        budget: The site's lifetime budget.
        steps: Noisy steps that it reported in this round.
    """

    outcome: str
    code: str
    epsilon: float
    budget: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One finished round."""

    round: int
    seconds: float
    sites: Mapping[str, SiteOutcome]


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
        self.write_json("study.json", study.model_dump(mode="json"))
        self.write_json("run.json", {"run": run, "study": study.digest})

    def run_id(self) -> str:
        """Identifier of the run.

        Raises:
            FederationError: If ``run.json`` is missing or damaged.
        """
        run = self._begun("run")
        if not run:
            raise FederationError(f"{self.path}: expected a readable run.json, found none.")
        return run

    def study_digest(self) -> str:
        """Digest of the study that was begun here; empty text if none was."""
        return self._begun("study")

    def write_json(self, name: str, value: object) -> None:
        """Write one JSON file; infinite values as the text ``inf``."""
        text = to_json(value, indent=2)
        write_atomically(self.path / name, (text + "\n").encode())

    def updates(self, round_number: int) -> Path:
        """Where the updates of a round lie until they are averaged; nothing outlives the round."""
        return self.path / _UPDATES / str(round_number)

    def write_waiting(self, value: Mapping[str, Any]) -> None:
        """Write down whom the current round waits for; see `medfl.server.waiting`."""
        self.write_json(_WAITING, value)

    def forget_round(self) -> None:
        """Remove what is here for the current round only."""
        (self.path / _WAITING).unlink(missing_ok=True)
        if (self.path / _UPDATES).exists():
            shutil.rmtree(self.path / _UPDATES)

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Append one line to the federation ledger, durable before this returns."""
        self._append("federation_ledger.jsonl", event)

    def events(self) -> list[dict[str, Any]]:
        """The federation ledger's lines.

        Raises:
            FederationError: If a line is damaged.
        """
        return self._lines("federation_ledger.jsonl")

    def append_declaration(self, declaration: Declaration, *, after_events: int) -> None:
        """Append what a site declared, and how many events came before it."""
        line = {"after_events": after_events, "declaration": declaration.model_dump_json()}
        self._append("declarations.jsonl", line)

    def declarations(self) -> list[tuple[int, Declaration]]:
        """Every declaration of this run, with the number of events before it.

        Raises:
            FederationError: If a line is damaged.
        """
        lines = self._lines("declarations.jsonl")
        try:
            return [
                (line["after_events"], Declaration.model_validate_json(line["declaration"]))
                for line in lines
            ]
        except (KeyError, ValueError):
            raise FederationError(
                f"{self.path / 'declarations.jsonl'}: expected declarations, found a damaged line."
            ) from None

    def append_round(self, record: RoundRecord) -> None:
        """Append one round to ``rounds.jsonl`` and ``rounds.csv``."""
        sites = {name: vars(outcome) for name, outcome in record.sites.items()}
        line = {"round": record.round, "seconds": round(record.seconds, 3), "sites": sites}
        self._append("rounds.jsonl", line)
        rows = [{"round": record.round, "site": name} | values for name, values in sites.items()]
        self._append_rows("rounds.csv", ROUND_COLUMNS, rows)

    def append_scores(self, scores: Iterable[Scores], *, variant: str, round_number: int) -> None:
        """Append one row a patient and region to ``metrics.csv``."""
        rows = [
            {
                "variant": variant,
                "round": round_number,
                "site": of_site.site,
                "patient": score.patient,
                "region": score.region,
                "dice": f"{score.dice:.6f}",
                "hd95_mm": "" if score.hd95_mm is None else f"{score.hd95_mm:.3f}",
            }
            for of_site in scores
            for score in of_site.scores
        ]
        self._append_rows("metrics.csv", METRIC_COLUMNS, rows)

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

    def rounds(self) -> list[dict[str, Any]]:
        """The finished rounds.

        Raises:
            FederationError: If a line is damaged.
        """
        return self._lines("rounds.jsonl")

    def metric_rows(self) -> list[dict[str, str]]:
        """The rows of ``metrics.csv``; none where no site shares metrics."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def truncate_tables(self, *, after_round: int, variant: str) -> None:
        """Drop table rows later than the checkpoint, which a resumed run writes again."""
        rounds = [line for line in self._lines("rounds.jsonl") if line["round"] <= after_round]
        text = "".join(json.dumps(line) + "\n" for line in rounds)
        write_atomically(self.path / "rounds.jsonl", text.encode())
        self._filter_rows("rounds.csv", lambda row: int(row["round"]) <= after_round)
        self._filter_rows(
            "metrics.csv",
            lambda row: row["variant"] != variant or int(row["round"]) <= after_round,
        )

    def _begun(self, key: str) -> str:
        try:
            values = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            return str(values[key])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _append(self, name: str, value: Mapping[str, Any]) -> None:
        with (self.path / name).open("a+b") as file:
            _cut_torn_line(file)
            file.write((to_json(value) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

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

    def _filter_rows(self, name: str, keep: Any) -> None:
        path = self.path / name
        if not path.exists():
            return
        reader = csv.DictReader(io.StringIO(_whole_lines(path), newline=""))
        columns, rows = list(reader.fieldnames or ()), [row for row in reader if keep(row)]
        kept = io.StringIO(newline="")
        writer = csv.DictWriter(kept, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, kept.getvalue().encode())

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return []
        lines = _whole_lines(path).splitlines()
        try:
            return [json.loads(line) for line in lines]
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
