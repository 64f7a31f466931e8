"""Going on after a hospital's ledger was lost, restored or moved."""

from __future__ import annotations

from medfl.config import SiteConfig
from medfl.errors import LedgerError
from medfl.privacy.ledger import recovery as ledger_recovery
from medfl.privacy.ledger.ledger import Ledger
from medfl.site.state import hospital_state, terms_of, witness_of


def acknowledge_loss(site: SiteConfig, *, reason: str) -> Ledger:
    """Go on after a hospital's ledger was lost, restored or moved; see `ledger_recovery`.

    Raises:
        LedgerError: If nothing is wrong, or the ledger is damaged in another way.
        DataError: If the cohort cannot be read.
    """
    site_state = hospital_state(site)
    witness = witness_of(site)
    if witness is None:
        raise LedgerError(
            f"Site {site.name}: expected a hospital's ledger, found the purpose 'open-data', whose "
            "ledgers nobody remembers."
        )
    return ledger_recovery.acknowledge_loss(
        site_state.ledger_folder,
        terms=terms_of(site),
        witness=witness,
        patients=site_state.marks(),
        reason=reason,
    )
