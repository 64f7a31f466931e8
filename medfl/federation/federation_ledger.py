"""The server's own account of what every site has spent.

Epsilon is recomputed here from the reported events and never believed. Everything that a site
released counts, also what the server then rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medfl.federation.messages import Declaration, SiteUpdate
from medfl.federation.run_folder import RunFolder
from medfl.privacy.accountant import Charge, epsilon
from medfl.privacy.mechanism import Mechanism


class FederationLedger:
    """Events of one run by site, appended to the run folder as they come.

    Args:
        folder: Where earlier events of this run are read from and new ones go.
        declarations: The sites' public constants.
    """

    def __init__(self, folder: RunFolder, *, declarations: Mapping[str, Declaration]) -> None:
        self._folder = folder
        self._declarations = declarations
        self._charges: dict[str, list[Charge]] = {site: [] for site in declarations}
        self._seen: set[tuple[str, int]] = set()
        for event in folder.events():
            self._count(event["site"], event["ledger_sequence"], event["mechanism"], event["steps"])

    def record(self, update: SiteUpdate, *, site: str, round_number: int, admitted: bool) -> float:
        """Count an update and return the site's epsilon of this run.

        An update that a site sends again out of its outbox has the same ledger sequence and is
        counted once.
        """
        mechanism = update.mechanism.to_dict()
        if self._count(site, update.ledger_sequence, mechanism, update.steps):
            self._folder.append_event(
                {
                    "sequence": len(self._seen),
                    "round": round_number,
                    "site": site,
                    "message_id": update.message_id,
                    "mechanism": mechanism,
                    "steps": update.steps,
                    "admitted": admitted,
                    "epsilon": self.epsilon(site),
                    "ledger_sequence": update.ledger_sequence,
                    "ledger_hash": update.ledger_hash,
                }
            )
        return self.epsilon(site)

    def charges(self, site: str) -> Sequence[Charge]:
        """What a site has spent in this run."""
        return tuple(self._charges[site])

    def epsilon(self, site: str) -> float:
        """Epsilon of a site in this run, at the site's delta."""
        return epsilon(self._charges[site], delta=self._declarations[site].delta)

    def _count(
        self, site: str, ledger_sequence: int, mechanism: dict[str, Any], steps: int
    ) -> bool:
        key = (site, ledger_sequence)
        if site not in self._charges or key in self._seen:
            return False
        self._seen.add(key)
        self._charges[site].append(Charge(mechanism=Mechanism.from_dict(mechanism), steps=steps))
        return True
