"""`Run`: one run of a study, as the server was told to lead it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from medfl.config import StudyConfig
from medfl.protocol.messages import Declaration, Weights
from medfl.runs.records import Variant
from medfl.server.progress import Progress
from medfl.server.run_folder import RunFolder

Doorkeeper = Callable[[Declaration, int], None]
"""Raises `MessageError` for a declaration that may not come from the node with this identifier."""


def welcome_all(declaration: Declaration, node: int) -> None:
    """Let every site in, where whoever runs the study has chosen the sites."""


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

    @property
    def timeout(self) -> float:
        """Seconds until a round goes on without those that are silent."""
        return self.study.aggregation.round_timeout_seconds * self.turns
