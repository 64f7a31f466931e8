"""``privacy.json``: what every site has spent, in all the forms that a report prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medfl.federation.federation_ledger import FederationLedger
from medfl.federation.messages import Declaration
from medfl.federation.run_folder import RunFolder
from medfl.privacy.accountant import Charge, epsilon, epsilon_rdp, replace_one_epsilon
from medfl.privacy.prv import epsilon_prv
from medfl.privacy.tradeoff import distinguishability

DELTAS = (1e-4, 1e-5, 1e-6)


def privacy_summary(
    folder: RunFolder, *, declarations: Mapping[str, Declaration]
) -> list[dict[str, Any]]:
    """One entry a site, recomputed from the federation ledger.

    Args:
        folder: The finished run.
        declarations: The sites' public constants.
    """
    ledger = FederationLedger(folder, declarations=declarations)
    rounds = folder.rounds()
    return [
        _site_entry(
            declaration,
            ledger.charges(site),
            last=_last_event(folder, site=site),
            lost=sum(_is_lost(line["sites"], site=site) for line in rounds),
        )
        for site, declaration in declarations.items()
    ]


def _site_entry(
    declaration: Declaration, charges: Sequence[Charge], *, last: Mapping[str, Any], lost: int
) -> dict[str, Any]:
    delta = declaration.delta
    attack = distinguishability(charges)
    return {
        "site": declaration.site,
        "delta": delta,
        "epsilon_pld": epsilon(charges, delta=delta, accuracy="report"),
        "epsilon_prv": epsilon_prv(charges, delta=delta),
        "epsilon_rdp": epsilon_rdp(charges, delta=delta),
        "epsilon_replace_one": replace_one_epsilon(charges, delta=delta),
        "epsilon_at": {
            f"{other:g}": epsilon(charges, delta=other, accuracy="report") for other in DELTAS
        },
        "mu": attack.mu,
        "membership_advantage": attack.membership_advantage,
        "tpr_at_1_percent_fpr": attack.tpr_at_1_percent_fpr,
        "steps": sum(charge.steps for charge in charges),
        "lifetime_epsilon": declaration.epsilon,
        "budget": declaration.epsilon_budget,
        "lost_rounds": lost,
        "ledger_sequence": last.get("ledger_sequence", declaration.ledger_sequence),
        "ledger_hash": last.get("ledger_hash", declaration.ledger_hash),
        "noise_origin": declaration.mechanism.noise_origin,
        "adjacency": declaration.mechanism.adjacency,
    }


def _is_lost(sites: Mapping[str, Any], *, site: str) -> bool:
    """Whether a round has no update of a site, be it that the site only joined a resumed run."""
    return site not in sites or sites[site]["outcome"] != "admitted"


def _last_event(folder: RunFolder, *, site: str) -> Mapping[str, Any]:
    events = [event for event in folder.events() if event["site"] == site]
    return events[-1] if events else {}
