"""`Run`: one run of a study, as the server was told to lead it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from medfl.config import StudyConfig
from medfl.protocol.messages import Declaration, Weights
from medfl.runs.records import Variant
from medfl.server.progress import Progress
from medfl.server.run_folder import RunFolder

Doorkeeper = Callable[[Declaration, int], None]
"""Raises `MessageError` for a declaration that may not come from the node with this identifier."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """Another run that the server has under way, with the same sites.

    Attributes:
        run: Its identifier.
        seconds: The longest that it waits for a site's answer to one message.
        sites: Names of the sites that agreed to it.
    """

    run: str
    seconds: float
    sites: frozenset[str]


def no_neighbours() -> tuple[Neighbour, ...]:
    """Where a run has the sites for itself."""
    return ()


def welcome_all(declaration: Declaration, node: int) -> None:
    """Let every site in, where the sites were chosen by the person who runs the study."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study: what is fixed before the first message.

    Attributes:
        run: Identifier of the run; message ids derive from it, so that a resumed run repeats them.
        private: False for the baseline without noise.
        variant: Name under which scores are stored.
        start: Makes the first global model.
        welcome: Decides which site may declare for which node.
        expected: The node of each site that should take part, by name; who is missing is named.
            Empty where any node may come.
        patience: Seconds that the expected sites have to connect.
        require_all: Whether the run waits for all of them, however long that takes.
        seen: Digests of the images that the study's start has seen.
        turns: How many sites one place to work at serves one after the other; each gets the time
            of a round for itself.
        neighbours: The other runs that are under way now.
    """

    study: StudyConfig
    folder: RunFolder
    run: str
    private: bool
    variant: Variant
    start: Callable[[], Weights]
    progress: Progress
    welcome: Doorkeeper = welcome_all
    expected: Mapping[str, int] = field(default_factory=dict)
    patience: float = 0.0
    require_all: bool = False
    seen: tuple[str, ...] = ()
    turns: int = 1
    neighbours: Callable[[], Sequence[Neighbour]] = no_neighbours

    @property
    def own_timeout(self) -> float:
        """Seconds that a site has for one message, if it is at work for nobody else."""
        return self.study.aggregation.round_timeout_seconds * self.turns

    @property
    def beside(self) -> tuple[str, ...]:
        """Identifiers of the other runs that are under way now, as the sites are told."""
        return tuple(other.run for other in self.neighbours())

    @property
    def others_timeout(self) -> float:
        """Seconds that a message may wait at a site for its turn.

        A site works on its messages in the order in which they were sent, one at a time, and
        another run never has more than one of them at a site.
        """
        return sum(neighbour.seconds for neighbour in self.neighbours())

    @property
    def timeout(self) -> float:
        """Seconds until a message that is sent now is void."""
        return self.own_timeout + self.others_timeout
