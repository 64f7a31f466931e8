"""What a ledger's entries say of its budget, without the packages that compute with it.

Each charge states the total that it leads to, so that a reader who only watches need not recount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from medfl.privacy.ledger.chain import Entry


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run of one study.

    Attributes:
        study: Name of the study.
        run: Its id.
        rounds: Rounds that were charged; one that was computed again counts once.
        last: When it was charged for the last time.
    """

    study: str
    run: str
    rounds: int
    last: datetime


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """The state of a budget.

    Attributes:
        name: Of the ledger: no two share it.
        epsilon: Lifetime epsilon of all charges.
        budget: Lifetime budget.
        delta: Delta at which epsilon is read.
        runs: In the order of their first charges.
    """

    name: str
    epsilon: float
    budget: float
    delta: float
    runs: tuple[RunSummary, ...]

    @property
    def left(self) -> float:
        """What is left of the budget, at least 0."""
        return max(0.0, self.budget - self.epsilon)


def summarised(entries: Sequence[Entry]) -> LedgerSummary:
    """Add up a chain.

    Args:
        entries: A hospital's chain from its first entry, as `LedgerStore.open` checked it.
    """
    terms = [entry.content for entry in entries if entry.kind == "init"][-1]
    budget, delta = float(terms["epsilon"]), float(terms["delta"])
    charges: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.kind == "charge":
            key = (entry.content["study"], entry.content["run"])
            charges.setdefault(key, []).append(entry)
    return LedgerSummary(
        name=entries[0].hash,
        epsilon=_epsilon(entries, budget=budget, delta=delta),
        budget=budget,
        delta=delta,
        runs=tuple(
            RunSummary(
                study=study,
                run=run,
                rounds=len({entry.content["round"] for entry in paid}),
                last=datetime.fromisoformat(paid[-1].time),
            )
            for (study, run), paid in charges.items()
        ),
    )


def _epsilon(entries: Sequence[Entry], *, budget: float, delta: float) -> float:
    for entry in reversed(entries):
        if entry.kind == "charge":
            return float(entry.content["lifetime_epsilon"])
        if entry.kind == "carry":
            # What an acknowledgement charged states no total; the next charge will.
            from medfl.privacy.ledger.spending import records, spent

            return spent(records(entries), budget=budget, delta=delta).private_epsilon
    return 0.0
