"""A ledger for an auditor: all entries, the totals, the audit log, and a signature by the site.

Anyone with the file and the site's public key can check the chains, the totals and the signatures
without access to the site. Patients appear as keyed hashes, whose key never leaves the site.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medfl.errors import LedgerError
from medfl.privacy.accounting.reassessment import Reassessment, reassess
from medfl.privacy.ledger.chain import GENESIS, Entry, read_entry
from medfl.privacy.ledger.ledger import Ledger, Terms
from medfl.privacy.ledger.recount import recount
from medfl.privacy.ledger.spending import Spent, records, spent
from medfl.privacy.ledger.terms import terms_in
from medfl.protocol.keys import Rotation, SiteKeys, is_successor
from medfl.signatures import is_signed
from medfl.site.audit_log import AuditLog
from medfl.site.log_check import check_log

FORMAT = "medfl ledger 2"
WITHOUT_LOG = "medfl ledger 1"
"""What earlier versions wrote; such a file is still checked."""


def export_ledger(ledger: Ledger, *, keys: SiteKeys, log: AuditLog | None = None) -> dict[str, Any]:
    """Everything that a ledger and its audit log hold, signed.

    Args:
        ledger: The ledger.
        keys: The site's keys.
        log: The audit log, which first catches up with the ledger; open data have none.

    Raises:
        LedgerError: If the ledger or the log cannot be trusted, or the log not be written.
    """
    ledger.recount()
    if log is not None:
        log.catch_up(ledger.entries())
    content: dict[str, Any] = {
        "format": FORMAT,
        "terms": asdict(ledger.terms),
        "entries": _lines(ledger.entries()),
        "log": _lines(log.entries() if log is not None else ()),
        "spent": _totals(ledger.spent()),
        "event_key": keys.event_key,
        "rotations": [asdict(rotation) for rotation in keys.rotations],
    }
    return content | {"signature": keys.sign(_canonical(content))}


def check_export(content: dict[str, Any], *, event_key: str) -> Spent:
    """Check an exported ledger against the key that a site is known by.

    Args:
        content: What `export_ledger` returned.
        event_key: The site's public event key, from its `site.pub`, or an earlier one.

    Returns:
        The totals, counted again.

    Raises:
        LedgerError: If a signature, a chain or a total is wrong, if the audit log lacks something
            or holds something else, or if the file is no export.
    """
    try:
        unsigned = {name: value for name, value in content.items() if name != "signature"}
        rotations = [Rotation(**rotation) for rotation in content["rotations"]]
        signed = is_signed(
            _canonical(unsigned), signature=content["signature"], event_key=content["event_key"]
        )
        known = is_successor(content["event_key"], of=event_key, rotations=rotations)
        if content["format"] not in (FORMAT, WITHOUT_LOG) or not (signed and known):
            raise LedgerError(
                f"Expected a ledger in the format {FORMAT!r} that is signed by the key "
                f"{event_key[:12]} or one that followed, found another."
            )
        entries = _chain(content["entries"])
        terms = Terms(**content["terms"])
        log = _chain(content["log"], noun="audit log") if content["format"] == FORMAT else []
    except (AttributeError, KeyError, TypeError, ValueError):
        raise LedgerError("Expected an exported ledger, found a damaged file.") from None
    if not entries or terms_in(entries) != terms:
        raise LedgerError("Expected the terms of the first entries, found others.")
    if content["format"] == FORMAT and terms.purpose == "hospital":
        check_log(log, ledger=entries, event_key=content["event_key"], rotations=rotations)
    recount(entries, terms=terms)
    totals = spent(records(entries), budget=terms.epsilon, delta=terms.delta)
    if _totals(totals) != content["spent"]:
        raise LedgerError("Expected the totals of the entries, found others.")
    return totals


def log_of(content: dict[str, Any]) -> list[Entry]:
    """The audit log in an export that was checked; empty in one of an earlier version."""
    return _chain(content.get("log", []), noun="audit log")


def reassess_export(content: dict[str, Any]) -> Reassessment:
    """What the charges of an affected version really promise, in an export that was checked.

    Args:
        content: What `check_export` has accepted.
    """
    terms, entries = Terms(**content["terms"]), _chain(content["entries"])
    return reassess(records(entries).values(), budget=terms.epsilon, delta=terms.delta)


def _lines(entries: Sequence[Entry]) -> list[dict[str, str]]:
    return [{"body": entry.body, "hash": entry.hash} for entry in entries]


def _chain(lines: list[dict[str, str]], *, noun: str = "ledger") -> list[Entry]:
    entries: list[Entry] = []
    for line in lines:
        previous = entries[-1].hash if entries else GENESIS
        entries.append(
            read_entry(
                line["body"],
                sequence=len(entries) + 1,
                previous=previous,
                stored_hash=line["hash"],
                noun=noun,
            )
        )
    return entries


def _totals(totals: Spent) -> dict[str, Any]:
    return {
        "epsilon": round(totals.private_epsilon, 6),
        "budget": totals.budget,
        "delta": totals.delta,
        "wasted_epsilon": round(totals.wasted_epsilon, 6),
        "steps": sum(run.steps for run in totals.by_run),
    }


def _canonical(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"medfl export\0{text}".encode()
