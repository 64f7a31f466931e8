"""Sites side by side: who works where, Flower's grid over workers, and one progress for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp

from medfl.config import SiteConfig
from medfl.protocol.messages import Declaration
from medfl.runs.records import Round
from medfl.server.progress import Progress, Silent
from medfl.study.in_process_grid import InProcessGrid
from medfl.study.worker import Tell
from medfl.study.workers import Bench


def share_out(sites: Sequence[SiteConfig], *, places: int, by_patients: bool) -> list[int]:
    """Where each site works: always at the same place, where its prepared patients stay in memory.

    The longest work is given first, each time to the place that has least. Sites with one state
    folder share a place: two processes never open one ledger.

    Args:
        sites: The sites.
        places: How many places there are.
        by_patients: Whether a site's work grows with its patients, as a round does.

    Returns:
        The place of each site, from 0 on.
    """
    by_state: dict[Path, list[int]] = {}
    for number, site in enumerate(sites):
        by_state.setdefault(site.state.resolve(), []).append(number)

    def work(numbers: Sequence[int]) -> int:
        return sum(sites[number].declared_patients if by_patients else 1 for number in numbers)

    loads = [0] * places
    found = [0] * len(sites)
    for numbers in sorted(by_state.values(), key=work, reverse=True):
        place = loads.index(min(loads))
        loads[place] += work(numbers)
        for number in numbers:
            found[number] = place
    return found


class SideBySideGrid(InProcessGrid):
    """A grid whose nodes work side by side as soon as they are sent something.

    Replies come in the order in which they are asked for, so that what the server writes does not
    depend on who was faster.

    Args:
        bench: Answers messages.
        places: Where each node works.
    """

    def __init__(self, bench: Bench, *, places: Mapping[int, int]) -> None:
        # Nobody works here.
        super().__init__(ClientApp(), node_configs={node: {} for node in places})
        self._bench = bench
        self._places = places
        self._numbers_of: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages, and let their nodes begin (Flower's interface)."""
        names = list(super().push_messages(messages))
        for name in names:
            message = self._sent[name]
            place = self._places[message.metadata.dst_node_id]
            self._numbers_of[name] = self._bench.ask(message, place=place)
        return names

    def deliver(self, message: Message) -> Message | None:
        """Wait for one node's answer.

        Raises:
            FederationError: If a worker died.
        """
        reply: Message | None = self._bench.answer(
            self._numbers_of.pop(message.metadata.message_id)
        )
        return reply


@dataclass(frozen=True, kw_only=True)
class Part:
    """How far a site is.

    Attributes:
        site: Its name.
        name: What it does.
        done: Of `total`.
        total: All of it.
    """

    site: str
    name: str
    done: int
    total: int

    @property
    def label(self) -> str:
        """Who does what."""
        return f"{self.site} {self.name}"


class PartTeller(Silent):
    """A `Progress` of one site's work, wherever that is done, which tells how far it is.

    Args:
        site: Its name.
        tell: Told a `Part` each time.
    """

    def __init__(self, site: str, tell: Tell) -> None:
        self._site = site
        self._tell = tell
        self._name = ""
        self._rounds = 1

    def phase(self, name: str) -> None:
        """The site begins something else."""
        self._name = name
        self.advanced(0, 1)

    def planned(self, declarations: Sequence[Declaration], *, rounds: int) -> None:  # noqa: ARG002
        """The rounds are what is counted."""
        self._rounds = rounds

    def advanced(self, done: int, total: int) -> None:
        """It is further."""
        self._tell(Part(site=self._site, name=self._name, done=done, total=total))

    def round_finished(self, record: Round) -> None:
        """It is a round further."""
        self.advanced(record.round, self._rounds)


class Together:
    """Shows what several sites do at the same time as one phase with one bar.

    Args:
        progress: Where to show it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._parts: dict[str, Part] = {}

    def hear(self, part: Part) -> None:
        """A site is further."""
        known = self._parts.get(part.site)
        self._parts[part.site] = part
        if known is None or known.name != part.name:
            # What has ended leaves the bar when something else begins.
            self._parts = {
                site: each
                for site, each in self._parts.items()
                if each is part or each.done < each.total
            }
            self._progress.phase(", ".join(each.label for each in self._parts.values()))
        shown = self._parts.values()
        self._progress.advanced(sum(each.done for each in shown), sum(each.total for each in shown))
