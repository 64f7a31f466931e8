"""Bugs of payment: steps that no charge stands for, or charges that are too small."""

from __future__ import annotations

from bugs.planting import Bug, edited
from medfl.privacy.engine import train_round
from medfl.privacy.ledger.ledger import Ledger
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import Mechanism

_CONSUME = "permit.consume()"

LEDGER = (
    Bug(
        name="a step without a permit",
        group="ledger",
        sentence="The first step of a round is free.",
        plant=edited(train_round, (_CONSUME, f"if step:\n            {_CONSUME}")),
    ),
    Bug(
        name="a step beyond the charge",
        group="ledger",
        sentence="A round makes one step more than it paid for.",
        plant=edited(
            train_round,
            ("range(mechanism.local_steps)", "range(mechanism.local_steps + 1)"),
            (_CONSUME, f"if step < mechanism.local_steps:\n            {_CONSUME}"),
        ),
    ),
    Bug(
        name="a permit without end",
        group="ledger",
        sentence="One charge pays for as many steps as anybody wants.",
        plant=edited(Permit.consume, ("self._left -= 1", "pass")),
    ),
    Bug(
        name="half of the steps written down",
        group="ledger",
        sentence="The ledger keeps half of the steps that it permits.",
        plant=edited(
            Ledger.charge, ('"steps": charge.steps', '"steps": max(1, charge.steps // 2)')
        ),
    ),
    Bug(
        name="accounted with twice the noise",
        group="ledger",
        sentence="The accountant is told 2 sigma.",
        plant=edited(
            Mechanism.event,
            (
                "GaussianDpEvent(self.noise_multiplier)",
                "GaussianDpEvent(2 * self.noise_multiplier)",
            ),
        ),
    ),
)
