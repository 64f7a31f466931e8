"""Counting a ledger again from its charges alone."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence

from medfl.errors import LedgerError
from medfl.privacy.accounting.accountant import lifetime_epsilon
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.ledger.spending import by_run, records
from medfl.privacy.ledger.terms import Terms

TOLERANCE = 1e-6
"""By how much a total may differ that another machine computes again, in epsilon."""


def recount(entries: Sequence[Entry], *, terms: Terms) -> None:
    """Compute lifetime epsilon again from the charges alone, at the last charge of every run.

    Args:
        entries: A whole chain.
        terms: What the ledger was made for.

    Raises:
        LedgerError: If an entry states another total.
    """
    last = {entry.content["run"]: entry for entry in entries if entry.kind == "charge"}
    for entry in last.values():
        before = records([other for other in entries if other.sequence <= entry.sequence])
        private = before[entry.sequence].is_private
        found = lifetime_epsilon(by_run(before.values()), delta=terms.delta, budget=terms.epsilon)
        total = json_number(found if private else math.inf)
        stated = entry.content["lifetime_epsilon"]
        agree = stated == total or (
            isinstance(stated, float)
            and isinstance(total, float)
            and math.isclose(stated, total, abs_tol=TOLERANCE)
        )
        if not agree and entry.content["accountant"] == accountant_version():
            raise LedgerError(
                f"Expected entry {entry.sequence} to state the total of all charges, {total}, "
                f"found {stated}."
            )


def accountant_version() -> str:
    """What counted a charge, for its entry."""
    return f"PLD of dp-accounting {importlib.metadata.version('dp-accounting')}"


def json_number(value: float) -> float | str:
    """An epsilon as an entry states it."""
    # JSON has no infinity; the chain's canonical form is strict JSON.
    return value if math.isfinite(value) else "infinite"
