"""`Run`: one run of a study, as the server was told to lead it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medfl.config import StudyConfig
from medfl.protocol.messages import Weights
from medfl.runs.records import Variant
from medfl.server.agreement import Doorkeeper, welcome_all
from medfl.server.progress import Progress
from medfl.server.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study: what is fixed before the first message.

    Attributes:
        run: Identifier of the run; message ids derive from it, so that a resumed run repeats them.
        private: False for the baseline without noise.
        variant: Name under which scores are stored.
        start: Makes the first global model.
        welcome: Decides which site may declare for which node.
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
    seen: tuple[str, ...] = ()
    turns: int = 1

    @property
    def timeout(self) -> float:
        """Seconds until a round goes on without those that are silent."""
        return self.study.aggregation.round_timeout_seconds * self.turns
