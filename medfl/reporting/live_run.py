"""`LiveRun`: a run folder while it grows, read without waiting for its end."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from medfl.errors import ReportError
from medfl.reporting.waiting import Waiting, read_waiting


@dataclass(frozen=True, kw_only=True)
class LiveSite:
    """One site after the last finished round.

    Attributes:
        epsilon: Spent in this run, recomputed by the server.
        outcome: Of the last finished round: ``admitted``, ``refused``, ``rejected``, ``silent``.
        code: Why, if not admitted.
        missed: Rounds without an admitted update.
    """

    name: str
    epsilon: float
    budget: float
    outcome: str
    code: str
    missed: int


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """A run as far as it is on disk.

    Attributes:
        study: Name of the study.
        rounds: Planned rounds.
        done: Finished rounds.
        seconds: Of each finished round.
        seconds_since: Since the last round ended, or since the run began.
        pretraining: Steps done and in total, while the first model is made; None at other times.
        waiting: The round under way; None where the server says nothing, as between two rounds.
        sites: After the last finished round, by name.
        epsilon: By site, after each finished round.
        dice: Mean by region after each scored round, of the federated model; empty where no scores
            leave the sites.
        finished: Whether the run came to its end.
    """

    study: str
    rounds: int
    done: int
    seconds: tuple[float, ...]
    seconds_since: float
    pretraining: tuple[int, int] | None
    waiting: Waiting | None
    sites: tuple[LiveSite, ...]
    epsilon: Mapping[str, tuple[float, ...]]
    dice: Mapping[str, tuple[tuple[int, float], ...]]
    finished: bool

    @property
    def seconds_a_round(self) -> float:
        """Median of the finished ones; 0 before the first."""
        return median(self.seconds) if self.seconds else 0.0

    @property
    def seconds_under_way(self) -> float:
        """How long the round under way takes already."""
        return self.seconds_since if self.waiting is None else self.waiting.seconds

    @property
    def late(self) -> bool:
        """Whether the round under way takes three times as long as rounds did so far."""
        if self.waiting is not None and self.waiting.overdue:
            return True
        return self.done < self.rounds and 0 < 3 * self.seconds_a_round < self.seconds_under_way

    @property
    def late_sites(self) -> tuple[str, ...]:
        """Who was asked, has not answered, and keeps a late round waiting."""
        return self.waiting.missing if self.waiting is not None and self.late else ()


def read_live(folder: Path) -> LiveRun:
    """Read what there is.

    Args:
        folder: A run folder, perhaps without a finished round.

    Raises:
        ReportError: If no run was begun there, or a file is damaged.
    """
    path = folder / "study.json"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        name, planned = str(study["id"]), int(study["training"]["rounds"])
        rows = _lines(folder / "rounds.jsonl")
        sites = tuple(
            _site(rows, name) for name in sorted({n for row in rows for n in row["sites"]})
        )
        done = int(rows[-1]["round"]) if rows else 0
        finished = (folder / "summary.json").exists()
        epsilon = {
            site.name: tuple(
                float(row["sites"][site.name]["epsilon"])
                for row in rows
                if site.name in row["sites"]
            )
            for site in sites
        }
        newest = folder / "rounds.jsonl"
        return LiveRun(
            study=name,
            rounds=planned,
            done=done,
            seconds=tuple(float(row["seconds"]) for row in rows),
            seconds_since=max(0.0, time.time() - (newest if rows else path).stat().st_mtime),
            pretraining=None if rows or finished else _pretraining(folder / "pretraining.json"),
            waiting=_under_way(folder, after=done),
            sites=sites,
            epsilon=epsilon,
            dice=_dice(folder / "metrics.csv"),
            finished=finished,
        )
    except (OSError, KeyError, TypeError, ValueError):
        raise ReportError(
            f"{folder}: expected a run folder, found none or a damaged one."
        ) from None


def _pretraining(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    done, total = int(values["done"]), int(values["total"])
    return (done, total) if done < total else None


def _under_way(folder: Path, *, after: int) -> Waiting | None:
    """The round under way, not one whose file a crash has left."""
    waiting = read_waiting(folder)
    return waiting if waiting is not None and waiting.round > after else None


def _site(rows: list[dict[str, Any]], name: str) -> LiveSite:
    seen = [row["sites"][name] for row in rows if name in row["sites"]]
    last = seen[-1]
    return LiveSite(
        name=name,
        epsilon=float(last["epsilon"]),
        budget=float(last["budget"]),
        outcome=str(last["outcome"]),
        code=str(last["code"]),
        missed=sum(at["outcome"] != "admitted" for at in seen) + len(rows) - len(seen),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    *whole, rest = path.read_text(encoding="utf-8").split("\n")
    del rest  # empty, or a line that is being written
    return [json.loads(line) for line in whole]


def _dice(path: Path) -> dict[str, tuple[tuple[int, float], ...]]:
    if not path.exists():
        return {}
    scores: dict[str, dict[int, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["variant"] == "federated" and row["dice"]:
                by_round = scores.setdefault(row["region"], {})
                by_round.setdefault(int(row["round"]), []).append(float(row["dice"]))
    return {
        region: tuple((number, fmean(values)) for number, values in sorted(by_round.items()))
        for region, by_round in scores.items()
    }


def epsilon_text(epsilon: float) -> str:
    """An epsilon for the page."""
    return "no limit" if math.isinf(epsilon) else f"{epsilon:.2f}"
