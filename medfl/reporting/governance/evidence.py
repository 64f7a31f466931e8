"""`Evidence`: what a run folder shows about protection, and what it does not.

A document must not claim what its folder does not show. Whatever stands against a claim is found
here, once for all documents, and each of them says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from medfl.reporting import privacy_tables
from medfl.reporting.governance.content import Tone
from medfl.runs.results import RunResults

Origin = Literal["deployment", "simulation", "unknown"]
Doubt = Literal["none", "overstated", "seeded", "simulation", "unknown", "unfinished", "audit"]
"""Why the folder does not show that patients were protected as planned."""

_DEPLOYED = "medfl server run "
_SIMULATED = "medfl simulate "


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the folder of a run shows.

    Attributes:
        origin: Whether hospitals worked on machines of their own, as the command says that began
            the run; ``unknown`` where no command was written down.
        doubts: What stands against a claim, the gravest first.
        guesses: How often the strongest attacker is right about a patient, from even odds, at
            most; 1 where nothing limits it.
    """

    origin: Origin
    doubts: tuple[Doubt, ...]
    guesses: float

    @property
    def holds(self) -> bool:
        """Whether nothing stands against the run's promise."""
        return not self.doubts

    @property
    def limited(self) -> bool:
        """Whether secret noise limits what can be learned of a patient, wherever it was made."""
        return _is_limited(self.doubts)

    @property
    def tone(self) -> Tone:
        """The colour of a document about it."""
        if self.holds:
            return "given"
        return "none" if {"none", "overstated", "audit"} & set(self.doubts) else "simulated"


def evidence(run: RunResults) -> Evidence:
    """What the folder shows."""
    origin = _origin(run)
    doubts: tuple[tuple[Doubt, bool], ...] = (
        ("none", bool(run.un_noised_sites)),
        ("overstated", run.was_overstated),
        ("seeded", run.has_seeded_noise),
        ("audit", run.audit is not None and not run.audit.passed),
        ("unfinished", run.rounds[-1].round < run.study.training.rounds),
        ("simulation", origin == "simulation"),
        ("unknown", origin == "unknown"),
    )
    found = tuple(name for name, holds in doubts if holds)
    guesses = privacy_tables.right_guesses(run) if _is_limited(found) else 1.0
    return Evidence(origin=origin, doubts=found, guesses=guesses)


def _is_limited(doubts: Iterable[Doubt]) -> bool:
    return not {"none", "overstated", "seeded"} & set(doubts)


def _origin(run: RunResults) -> Origin:
    """Open data cannot be deployed, and so their runs are simulations whatever began them."""
    command = run.environment.command
    opened = any(site.purpose == "open-data" for site in run.sites)
    if opened or command.startswith(_SIMULATED):
        return "simulation"
    return "deployment" if command.startswith(_DEPLOYED) else "unknown"
