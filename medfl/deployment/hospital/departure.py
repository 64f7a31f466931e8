"""`leave`: a hospital leaves for good; its private keys go, what it spent stays on record.

The order makes every crash repairable by calling it again: first the mark that ends a running site
and refuses every message, then the last signed export of the ledger, then the keys that signed it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from medfl.config import SiteConfig
from medfl.deployment.hospital.participation import LOCK, Departure, now
from medfl.deployment.lock import exclusive
from medfl.durable import sync_folder, write_atomically
from medfl.errors import ConfigError
from medfl.protocol.keys import EVENT_KEY, KEYS, PUBLIC, SiteKeys
from medfl.site.audit_log import AuditLog
from medfl.site.ledger_export import export_ledger
from medfl.site.state import hospital_state

LAST_EXPORT = "last-export.json"
END_SECONDS = 90.0


def leave(site: SiteConfig, *, reason: str) -> Path:
    """Leave for good: export the ledger, delete the private keys, keep everything else.

    Args:
        site: The hospital's file.
        reason: Why; it is kept beside the ledger and shown to who tries to start the site again.

    Returns:
        The signed export, which `medfl ledger check-export` checks with the site's `site.pub`.

    Raises:
        ConfigError: If there is nothing to leave with: no keys, or it has left before.
        LedgerError: If ledger and audit log cannot be exported; nothing has changed then.
        FederationError: If the running site does not end.
    """
    state, export = site.state, site.state / LAST_EXPORT
    departure = Departure.read(state)
    if departure is not None and not (state / KEYS).exists():
        raise ConfigError(f"{state}: this site left on {departure.date}.")
    if departure is None:
        AuditLog(state).note("leave")
        _export(site)
        Departure(date=now(), reason=reason).write(state)
    with exclusive(state / LOCK, noun="a site", patience_seconds=END_SECONDS):
        # Once more: a round may have been charged meanwhile. A crash may have taken the key.
        if (state / KEYS / EVENT_KEY).exists():
            _export(site)
        shutil.rmtree(state / KEYS)
        sync_folder(state)
    return export


def _export(site: SiteConfig) -> None:
    keys = SiteKeys.read(site.state / KEYS)
    if not (site.state / PUBLIC).exists():
        keys.write_public(site.state / PUBLIC, folder=site.state / KEYS)
    with hospital_state(site).open_ledger() as ledger:
        content = export_ledger(ledger, keys=keys, log=AuditLog(site.state))
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(site.state / LAST_EXPORT, text.encode(), mode=0o600)
