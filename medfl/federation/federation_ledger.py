"""The server's own account of what every site has spent.

Epsilon is recomputed here from the reported events and never believed. Everything that a site
released counts, also what the server then rejected. A site that reports anything but the mechanism
it agreed to is counted as having added no noise: nothing is known of what it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
        self._seen: set[tuple[str, str, int]] = set()
        for event in folder.events():
            key = (event["site"], event["message_id"], event["ledger_sequence"])
            self._count(key, event["mechanism"], event["steps"])

    def record(self, update: SiteUpdate, *, site: str, round_number: int, admitted: bool) -> float:
        """Count an update and return the site's epsilon of this run.

        An update that a site sends again out of its outbox answers the same message with the same
        ledger sequence and is counted once.
        """
        mechanism = update.mechanism.to_dict()
        key = (site, update.message_id, update.ledger_sequence)
        if self._count(key, mechanism, update.steps):
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

    def _count(self, key: tuple[str, str, int], mechanism: dict[str, Any], steps: int) -> bool:
        site = key[0]
        if site not in self._charges or key in self._seen:
            return False
        self._seen.add(key)
        agreed = self._declarations[site].mechanism
        if Mechanism.from_dict(mechanism) != agreed or steps != agreed.local_steps:
            # Not composed as reported: an absurd report could keep an accountant busy for hours.
            agreed = replace(agreed, noise_multiplier=0.0)
        self._charges[site].append(Charge(mechanism=agreed, steps=agreed.local_steps))
        return True
