"""What the entries of a ledger add up to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medfl.privacy.accounting.accountant import epsilon as epsilon_of
from medfl.privacy.accounting.accountant import lifetime_epsilon
from medfl.privacy.accounting.charges import Charge, merged
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.ledger.witness import RunCharge
from medfl.privacy.mechanism import Mechanism

CARRIED = "carried over"
"""In place of the digest of a charge that was taken over from a lost ledger."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A charge as the ledger holds it; `digest` is empty until its result is released."""

    study: str
    run: str
    message_id: str
    charge: Charge
    digest: str = ""

    @property
    def is_private(self) -> bool:
        """False for a baseline without noise."""
        return self.charge.mechanism.is_private


@dataclass(frozen=True, kw_only=True)
class RunSpent:
    """What one run of one study was charged; epsilon as if nothing else had been."""

    study: str
    run: str
    epsilon: float
    steps: int
    charges: int
    released: int


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The state of a budget.

    Attributes:
        epsilon: Lifetime epsilon of everything, infinite where a baseline without noise was run.
        private_epsilon: Lifetime epsilon of all charges with noise, which the budget limits.
        budget: Lifetime budget.
        delta: Delta at which every epsilon here is read.
        wasted_epsilon: Epsilon of charges that were never released: crashes and rounds under way.
        by_run: One row a run, in the order of their first charges.
    """

    epsilon: float
    private_epsilon: float
    budget: float
    delta: float
    wasted_epsilon: float
    by_run: tuple[RunSpent, ...]

    @property
    def remaining(self) -> float:
        """What is left of the budget, at least 0."""
        return max(0.0, self.budget - self.private_epsilon)


def records(entries: Sequence[Entry]) -> dict[int, Record]:
    """The charges among the entries by their sequence."""
    digests = {
        entry.content["charge"]: entry.content["digest"]
        for entry in entries
        if entry.kind == "release"
    }
    found = {}
    for kind in ("charge", "carry"):
        for entry in entries:
            if entry.kind == kind:
                # Of what is carried over, nobody knows any more whether it was released.
                digest = CARRIED if kind == "carry" else digests.get(entry.sequence, "")
                found[entry.sequence] = _record(entry, digest=digest)
    return found


def _record(entry: Entry, *, digest: str) -> Record:
    content = entry.content
    return Record(
        study=content["study"],
        run=content["run"],
        message_id=content.get("message_id", ""),
        charge=Charge(mechanism=Mechanism.from_dict(content["mechanism"]), steps=content["steps"]),
        digest=digest,
    )


def charged_by_run(charged: Mapping[int, Record]) -> tuple[RunCharge, ...]:
    """All charges, added up by run and mechanism: what a witness remembers."""
    steps: dict[tuple[str, str, Mechanism], int] = {}
    for record in charged.values():
        key = (record.study, record.run, record.charge.mechanism)
        steps[key] = steps.get(key, 0) + record.charge.steps
    return tuple(
        RunCharge(study=study, run=run, charge=Charge(mechanism=mechanism, steps=count))
        for (study, run, mechanism), count in steps.items()
    )


def by_run(charged: Iterable[Record]) -> tuple[tuple[Charge, ...], ...]:
    """Charges with noise, run by run, as `lifetime_epsilon` wants them.

    What a run may do is fixed when a site agrees to it. Whether there is another run, even of the
    same study, may have been chosen after seeing outputs, and so may a change of the mechanism:
    a run that changed it appears once for each.
    """
    runs: dict[tuple[str, str, float, float], list[Charge]] = {}
    for record in charged:
        if record.is_private:
            mechanism = record.charge.mechanism
            key = (record.study, record.run, mechanism.sampling_prob, mechanism.noise_multiplier)
            runs.setdefault(key, []).append(record.charge)
    return tuple(merged(charges) for charges in runs.values())


def spent(charged: Mapping[int, Record], *, budget: float, delta: float) -> Spent:
    """Add up all charges."""

    def lifetime(part: Iterable[Record]) -> float:
        return lifetime_epsilon(by_run(part), delta=delta, budget=budget)

    everything = list(charged.values())
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in everything:
        runs.setdefault((record.study, record.run), []).append(record)
    private = lifetime(everything)
    return Spent(
        epsilon=private if all(record.is_private for record in everything) else math.inf,
        private_epsilon=private,
        budget=budget,
        delta=delta,
        wasted_epsilon=lifetime(record for record in everything if not record.digest),
        by_run=tuple(
            RunSpent(
                study=study,
                run=run,
                epsilon=epsilon_of([record.charge for record in rows], delta=delta),
                steps=sum(record.charge.steps for record in rows),
                charges=len(rows),
                released=sum(bool(record.digest) for record in rows),
            )
            for (study, run), rows in runs.items()
        ),
    )
