"""`RollCall`: which of the expected sites answer before round 1, and why the others do not.

What it hears is written to the run folder at once, for anyone who watches the run; how it ended
stays there, since a run that began without a hospital has to say so wherever it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from medfl.errors import QuorumError
from medfl.runs.attendance import AWAY, SILENT, STUDIES_AT_ONCE, Absence, Attendance
from medfl.runs.files import WAITING
from medfl.runs.waiting import AGREEING, CONNECTING, Waiting
from medfl.server.ask import POLL_SECONDS, answers
from medfl.server.run import Run


class RollCall:
    """One call before the first round of a start.

    Args:
        run: Whom it expects, and how long it waits for them.
        first_round: The round that comes next.
    """

    def __init__(self, run: Run, *, first_round: int) -> None:
        self._run = run
        self._first_round = first_round
        self._names = {node: name for name, node in run.expected.items()}
        # A site that is not on the roster of a secure sum cannot join it later.
        roster = run.folder.roster()
        self._required = {
            name for name in run.expected if run.require_all and (not roster or name in roster)
        }
        self._waiting: Waiting | None = None
        self.absent: dict[str, Absence] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write down who is missing, also where too few came."""
        self._run.folder.forget_round()
        self._run.folder.append_attendance(
            Attendance(first_round=self._first_round, absent=dict(sorted(self.absent.items())))
        )

    @property
    def problems(self) -> str:
        """Who takes no part, and why, in one line."""
        told = (f"{name}: {absence.reason}" for name, absence in sorted(self.absent.items()))
        return "; ".join(told)

    def name_of(self, node: int, *, number: int) -> str:
        """The name under which a node was admitted; where nobody knows it, its number."""
        return self._names.get(node, f"site {number}")

    def miss(self, name: str, code: str, *, seconds: float = 0.0) -> None:
        """Leave a site out.

        Args:
            name: The site.
            code: Why.
            seconds: How long it was waited for.
        """
        beside = self._runs_of(name) if code == STUDIES_AT_ONCE else ()
        self.absent[name] = Absence(code=code, seconds=seconds, beside=beside)

    def connected(self, grid: Grid) -> list[int]:
        """Wait for the sites to connect.

        They get the run's patience, and all the time there is where it requires them. If they are
        too few for the study then, they get the time of a round.

        Returns:
            The connected ones among those that are expected, or all where nobody is, ascending.

        Raises:
            QuorumError: If there are too few at the end.
        """
        run, needed = self._run, self._run.study.aggregation.min_sites
        limit = None if run.require_all else run.patience
        self._begin(CONNECTING, run.expected, timeout=limit)
        begin = time.monotonic()
        while True:
            nodes = self._here(grid)
            waited = time.monotonic() - begin
            self._hear({self._names[node] for node in nodes if node in self._names})
            missing = [name for name, node in run.expected.items() if node not in nodes]
            enough = len(nodes) >= needed
            patience = run.patience if enough else max(run.patience, run.own_timeout)
            if enough and not missing:
                break
            if waited >= patience and not self._required.intersection(missing):
                break
            time.sleep(POLL_SECONDS)
        for name in missing:
            self.miss(name, AWAY, seconds=patience)
        if not enough:
            raise QuorumError(
                f"Expected at least {needed} connected sites after {patience:g} s, found "
                f"{len(nodes)}{f' ({self.problems})' if missing else ''}."
            )
        return nodes

    def ask(
        self,
        grid: Grid,
        nodes: Sequence[int],
        *,
        question: Callable[[], RecordDict],
        kind: str,
        group: str,
    ) -> dict[int, Message]:
        """Ask connected sites; those that are silent to the end are left out.

        Args:
            grid: The grid.
            nodes: Whom to ask, in this order.
            question: Its content as it is now; who was away when it was sent is sent a new one.
            kind: Flower's message type.
            group: Name of the question, for Flower's own log.

        Returns:
            Answers by node.
        """
        asked = [self._names[node] for node in nodes if node in self._names]
        limit = None if self._run.require_all else self._run.timeout
        self._begin(AGREEING, asked, timeout=limit)
        begin = time.monotonic()
        heard: dict[int, Message] = {}
        for node, reply in self._replies(grid, nodes, question=question, kind=kind, group=group):
            heard[node] = reply
            self._hear({self._names[node] for node in heard if node in self._names})
        waited = time.monotonic() - begin
        for number, node in enumerate(nodes, start=1):
            if node not in heard:
                self.miss(self.name_of(node, number=number), SILENT, seconds=waited)
        return heard

    def require(self, agreed: Collection[str], *, to: str) -> None:
        """Refuse to begin with too few sites.

        Args:
            agreed: Names of the sites that are left.
            to: What they should do, for the error.

        Raises:
            QuorumError: If the study needs more of them, or the run all of them.
        """
        needed = self._run.study.aggregation.min_sites
        if len(agreed) < needed:
            raise QuorumError(
                f"Expected at least {needed} sites that {to}, found {len(agreed)} "
                f"({self.problems or 'no refusals'})."
            )
        if self._required & self.absent.keys():
            raise QuorumError(
                f"Expected all {len(self._required)} sites to {to} (--require-all), found "
                f"{len(agreed)} ({self.problems})."
            )

    def _replies(
        self,
        grid: Grid,
        nodes: Sequence[int],
        *,
        question: Callable[[], RecordDict],
        kind: str,
        group: str,
    ) -> Iterator[tuple[int, Message]]:
        unheard = dict.fromkeys(nodes)  # keys, which stay in their order
        while unheard:
            asked = dict.fromkeys(unheard, question())
            for node, reply in answers(
                grid, asked, kind=kind, group=group, timeout=self._run.timeout
            ):
                unheard.pop(node)
                yield node, reply
            if not self._run.require_all:
                return
            # Flower sends a message to nobody who is not connected at that moment.
            while not unheard.keys() <= set(grid.get_node_ids()):
                time.sleep(POLL_SECONDS)

    def _runs_of(self, name: str) -> tuple[str, ...]:
        return tuple(other.run for other in self._run.neighbours() if name in other.sites)

    def _here(self, grid: Grid) -> list[int]:
        nodes = sorted(grid.get_node_ids())
        return [node for node in nodes if node in self._names] if self._names else nodes

    def _begin(self, phase: str, asked: Iterable[str], *, timeout: float | None) -> None:
        number = 1 + max((line.round for line in self._run.folder.rounds()), default=0)
        self._waiting = Waiting.begin(number, asked=asked, timeout=timeout, phase=phase)
        self._run.folder.write(WAITING, self._waiting)

    def _hear(self, names: set[str]) -> None:
        if self._waiting is None or set(self._waiting.answered) == names:
            return
        self._waiting = self._waiting.hearing(names)
        self._run.folder.write(WAITING, self._waiting)
