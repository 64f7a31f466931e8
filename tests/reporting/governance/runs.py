"""Run folders with something against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.reporting.test_audit_table import attacked

Builder = Callable[..., Path]


def rewrite(path: Path, **values: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def keep_rounds(folder: Path, count: int) -> Path:
    """Leave a run after its first rounds."""
    for name in ("rounds.jsonl", "federation_ledger.jsonl"):
        path = folder / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["round"] <= count))
    return folder


def begun_by(folder: Path, command: str) -> Path:
    """Leave the command that a run was begun with."""
    rewrite(folder / "environment.json", command=command)
    return folder


def of_first_version(folder: Path) -> Path:
    """Leave a run as if medfl 0.1 had computed it."""
    rewrite(folder / "environment.json", medfl="0.1.4")
    return folder


DOUBTFUL: dict[str, Callable[[Builder], Path]] = {
    "none": lambda build: build(noise_multiplier=0.0),
    "overstated": lambda build: of_first_version(build()),
    "seeded": lambda build: build(noise_origin="seeded"),
    "audit": lambda build: attacked(build(), passed=False),
    "unfinished": lambda build: keep_rounds(build(), 6),
    "simulation": lambda build: begun_by(build(), "medfl simulate study.toml a.toml --out run"),
    "open data": lambda build: build(purpose="open-data"),
    "unknown": lambda build: begun_by(build(), ""),
}
"""By what stands against a run of hospitals, how to leave one."""
