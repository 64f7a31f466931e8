"""Going on after a hospital's ledger was lost, restored or moved, or was made by mistake."""

from __future__ import annotations

from medfl.config import SiteConfig
from medfl.errors import LedgerError
from medfl.privacy.ledger import recovery as ledger_recovery
from medfl.privacy.ledger.ledger import Ledger
from medfl.privacy.ledger.witness import Witness
from medfl.site.audit_log import AuditLog
from medfl.site.known_patients import witness_of
from medfl.site.state import hospital_state, terms_of


def acknowledge_loss(site: SiteConfig, *, reason: str) -> Ledger:
    """Go on after a hospital's ledger was lost, restored or moved; see `ledger_recovery`.

    Raises:
        LedgerError: If nothing is wrong, or the ledger is damaged in another way.
        DataError: If the cohort cannot be read.
    """
    site_state = hospital_state(site)
    ledger = ledger_recovery.acknowledge_loss(
        site_state.ledger_folder,
        terms=terms_of(site),
        witness=_witness(site),
        patients=site_state.marks(),
        held_out=site_state.marks(held_out=True),
        reason=reason,
    )
    AuditLog(site.state).follow(ledger.entries())
    return ledger


def make_again(site: SiteConfig) -> Ledger:
    """Make a hospital's ledger again for what its file says now; see `ledger_recovery`.

    Raises:
        LedgerError: If something was agreed to or charged, the ledger cannot be trusted, or another
            one pays for a patient.
        DataError: If the cohort cannot be read.
    """
    site_state = hospital_state(site)
    ledger = ledger_recovery.make_again(
        site_state.ledger_folder,
        terms=terms_of(site),
        witness=_witness(site),
        patients=site_state.marks(),
        held_out=site_state.marks(held_out=True),
    )
    AuditLog(site.state).follow(ledger.entries())
    return ledger


def _witness(site: SiteConfig) -> Witness:
    witness = witness_of(site)
    if witness is None:
        raise LedgerError(
            f"Site {site.name}: expected a hospital's ledger, found the purpose 'open-data', whose "
            "ledgers nobody remembers."
        )
    return witness
