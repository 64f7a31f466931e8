"""How many steps a run may be charged for: what was agreed, and a little for crashes.

A site that agreed to 40 rounds computes 40 rounds. A server that asks for a round again, under
whatever name, would otherwise have the whole budget spent on one run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from medfl.errors import PolicyRefused
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.ledger.terms import Agreement

SPARE_SHARE = 0.25
"""Share of a run's rounds that it may be charged for once more, for rounds lost to crashes."""

SPARE_ROUNDS = 3
"""The least number of such rounds, for short runs."""


def most_steps(*, rounds: int, local_steps: int) -> int:
    """The most noisy steps that a run may be charged for.

    Each crash between the charge of a round and its stored result costs one round more. A quarter
    of the rounds, and at least 3, is room for that; all of it counts against the budget as well.

    Args:
        rounds: Rounds of the study, each of them computed once.
        local_steps: Noisy steps in each.
    """
    return (rounds + max(SPARE_ROUNDS, math.ceil(SPARE_SHARE * rounds))) * local_steps


def agreement_of(entries: Sequence[Entry], *, run: str) -> Agreement | None:
    """What the entries of a ledger let a run do, or None if the site never agreed to it."""
    for entry in entries:
        if entry.kind == "agree" and entry.content["run"] == run:
            return Agreement.from_dict(entry.content)
    return None


def require_allowed(
    entries: Sequence[Entry], *, run: str, round_number: int, message_id: str, steps: int
) -> None:
    """Check that a charge is within what the site agreed to for the run.

    A message that is computed again, as after a crash, takes from the allowance; another message
    for the same round is not computed at all.

    Args:
        entries: All entries of the ledger.
        run: The run.
        round_number: The round that is charged.
        message_id: The message that asks for it.
        steps: Noisy steps of the charge.

    Raises:
        PolicyRefused: If there is no agreement, if it does not allow as many steps, or if another
            message was charged for this round.
    """
    agreement = agreement_of(entries, run=run)
    if agreement is None:
        raise PolicyRefused(
            "Expected a run that this site agreed to, found no agreement in the ledger.",
            code="policy-not-agreed",
        )
    paid = [
        entry for entry in entries if entry.kind in ("charge", "carry") and _is_of(entry, run=run)
    ]
    for entry in paid:
        # What was carried over from a lost ledger knows neither round nor message.
        if entry.content.get("round") == round_number:
            if entry.content["message_id"] != message_id:
                raise PolicyRefused(
                    f"Expected round {round_number} of the run to be asked for by the message that "
                    "was charged for it, found another message; a round is computed for one only.",
                    code="policy-round",
                )
            break
    charged = sum(entry.content["steps"] for entry in paid)
    if charged + steps > agreement.steps:
        raise PolicyRefused(
            f"Expected at most {agreement.steps} noisy steps in this run, as agreed (with what is "
            f"allowed for rounds lost to crashes), found {charged} charged and {steps} more asked "
            "for. Nothing was charged; a new run needs a new agreement.",
            code="policy-steps",
        )


def _is_of(entry: Entry, *, run: str) -> bool:
    return bool(entry.content["run"] == run)
