"""What a hospital's administrator did, for the audit log."""

from __future__ import annotations

from pathlib import Path

from medfl.deployment.invitation import Invitation
from medfl.site.audit_log import AuditLog


def note_joining(state: Path, invitation: Invitation | None) -> None:
    """Write down that a site was made, and whose invitation it answers.

    Args:
        state: The site's state folder, with its keys.
        invitation: What the coordinator sent, if anything.

    Raises:
        LedgerError: If the log cannot be written.
    """
    log = AuditLog(state)
    if invitation is None:
        log.note_exchanges()  # there are none: this begins the log
        return
    log.note(
        "invitation",
        federation=invitation.federation,
        name=invitation.name,
        server=invitation.server,
        code=invitation.code,
        authority=invitation.authority_fingerprint,
    )
