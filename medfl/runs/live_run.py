"""`LiveRun`: a run folder while it grows, read without waiting for its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

from medfl.errors import ReportError
from medfl.runs import metrics_table
from medfl.runs.attendance import Absence
from medfl.runs.files import (
    ATTENDANCE,
    PRETRAINING,
    ROUNDS,
    STUDY,
    SUMMARY,
    WAITING,
    Lines,
    parsed,
    text_of,
)
from medfl.runs.records import Round
from medfl.runs.waiting import Waiting

T = TypeVar("T")


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
        absent: Sites that take no part since the run was started, or went on, for the last time.
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
    absent: Mapping[str, Absence]
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
        """Whether the round under way takes three times as long as rounds did so far.

        Beside other studies it may have to wait for a round of each of them first.
        """
        if self.waiting is not None and self.waiting.overdue:
            return True
        others = self.waiting.others if self.waiting is not None else 0.0
        late_after = 3 * self.seconds_a_round + others
        return (
            self.done < self.rounds
            and self.seconds_a_round > 0
            and (late_after < self.seconds_under_way)
        )

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
    try:
        study = STUDY.read(folder)
        rounds = _so_far(folder)
        names = sorted({name for row in rounds for name in row.sites})
        done = rounds[-1].round if rounds else 0
        finished = (folder / SUMMARY.name).exists()
        newest = folder / (ROUNDS.name if rounds else STUDY.name)
        return LiveRun(
            study=study.id,
            rounds=study.training.rounds,
            done=done,
            seconds=tuple(row.seconds for row in rounds),
            seconds_since=max(0.0, time.time() - newest.stat().st_mtime),
            pretraining=None if rounds or finished else _pretraining(folder),
            waiting=_under_way(folder, after=done),
            absent=_absent(folder),
            sites=tuple(_site(rounds, name) for name in names),
            epsilon={
                name: tuple(row.sites[name].epsilon for row in rounds if name in row.sites)
                for name in names
            },
            dice=_dice(folder),
            finished=finished,
        )
    except (OSError, ReportError):
        raise ReportError(
            f"{folder}: expected a run folder, found none or a damaged one."
        ) from None


def _pretraining(folder: Path) -> tuple[int, int] | None:
    if not (folder / PRETRAINING.name).exists():
        return None
    found = PRETRAINING.read(folder)
    return (found.done, found.total) if found.done < found.total else None


def _under_way(folder: Path, *, after: int) -> Waiting | None:
    """The round under way, not one whose file a crash has left."""
    try:
        waiting = WAITING.read(folder)
    except ReportError:
        return None  # taken away when the round ended
    return waiting if waiting.round > after else None


def _site(rounds: Sequence[Round], name: str) -> LiveSite:
    seen = [row.sites[name] for row in rounds if name in row.sites]
    last = seen[-1]
    return LiveSite(
        name=name,
        epsilon=last.epsilon,
        budget=last.budget,
        outcome=last.outcome,
        code=last.code,
        missed=sum(at.outcome != "admitted" for at in seen) + len(rounds) - len(seen),
    )


def _so_far(folder: Path) -> tuple[Round, ...]:
    """The rounds that are written to their end."""
    return _whole(ROUNDS, folder)


def _absent(folder: Path) -> Mapping[str, Absence]:
    starts = _whole(ATTENDANCE, folder)
    return starts[-1].absent if starts else {}


def _whole(file: Lines[T], folder: Path) -> tuple[T, ...]:
    path = folder / file.name
    if not path.exists():
        return ()
    whole = _whole_lines(text_of(path)).splitlines()
    return tuple(parsed(line, file.kind, where=str(path)) for line in whole)


def _dice(folder: Path) -> dict[str, tuple[tuple[int, float], ...]]:
    path = folder / metrics_table.NAME
    if not path.exists():
        return {}
    scores: dict[str, dict[int, list[float]]] = {}
    for score in metrics_table.scores_in(_whole_lines(text_of(path)), where=path):
        if score.variant == "federated":
            by_round = scores.setdefault(score.region, {})
            by_round.setdefault(score.round, []).append(score.dice)
    return {
        region: tuple((number, fmean(values)) for number, values in sorted(by_round.items()))
        for region, by_round in scores.items()
    }


def _whole_lines(text: str) -> str:
    """A text without a last line that is being written."""
    return text[: text.rfind("\n") + 1]


def epsilon_text(epsilon: float) -> str:
    """An epsilon for the page."""
    return "no limit" if math.isinf(epsilon) else f"{epsilon:.2f}"
