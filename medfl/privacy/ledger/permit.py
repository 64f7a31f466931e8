"""`Permit`: noisy steps that a ledger was charged for, spent one by one."""

from __future__ import annotations

from medfl.errors import PermitExhausted
from medfl.privacy.accounting.charges import Charge


class Permit:
    """Noisy steps that are paid for.

    Args:
        charge: What was charged.
    """

    def __init__(self, charge: Charge) -> None:
        self.charge = charge
        self._left = charge.steps

    def consume(self) -> None:
        """Spend one noisy step, before it touches data.

        Raises:
            PermitExhausted: If every charged step has been spent.
        """
        if self._left == 0:
            raise PermitExhausted(
                f"Expected at most the {self.charge.steps} noisy steps that were charged, "
                "found one more."
            )
        self._left -= 1
