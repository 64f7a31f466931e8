"""Whether an audit log is what a site wrote: nothing removed, moved, changed or made up.

The chain shows what was removed, moved or changed between two entries, the signatures who wrote
them, and the ledger that nothing which it holds is missing. Only entries at the very end that the
ledger does not hold (a pause, a refusal) could be cut off by anyone who holds the site's key; a log
that is shorter than an earlier export shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from medfl.config import SiteConfig
from medfl.errors import LedgerError
from medfl.privacy.ledger.chain import Entry
from medfl.protocol.keys import KEYS, Rotation, SiteKeys
from medfl.signatures import is_signed
from medfl.site.audit_log import audit_log_of, of_ledger, signed_part


def check_log(
    log: Sequence[Entry],
    *,
    ledger: Sequence[Entry],
    event_key: str,
    rotations: Sequence[Rotation],
    complete: bool = True,
) -> None:
    """Check a log against the keys and the ledger of its site.

    Args:
        log: Its chain, in which every hash was checked.
        ledger: The ledger's.
        event_key: The site's newest public key.
        rotations: All exchanges of keys that led to it.
        complete: Whether the newest entries of the ledger have to be in the log already.

    Raises:
        LedgerError: If anything is wrong.
    """
    _check_signatures(log, event_key=event_key, rotations=rotations)
    exchanged = [(each.content["old"], each.content["new"]) for each in log if each.kind == "keys"]
    expected = [(rotation.old, rotation.new) for rotation in rotations]
    if exchanged != (expected if complete else expected[: len(exchanged)]):
        raise LedgerError(
            f"Expected the {len(expected)} exchanges of keys in the audit log, found "
            f"{len(exchanged)}, or others."
        )
    _check_ledger(log, ledger=ledger, complete=complete)


def checked_log(site: SiteConfig, *, ledger: Sequence[Entry]) -> tuple[Entry, ...]:
    """The audit log of a site, checked as far as the site itself can; it may lag behind the ledger.

    Args:
        site: The site.
        ledger: The ledger's chain.

    Returns:
        Its chain; empty for open data, and where nothing was written down yet.

    Raises:
        LedgerError: If it is damaged, edited, or another site's.
    """
    log = audit_log_of(site)
    entries = log.entries() if log is not None else ()
    folder = site.state / KEYS
    if entries and folder.exists():  # a site that has left has none any more
        keys = SiteKeys.read(folder)
        check_log(
            entries,
            ledger=ledger,
            event_key=keys.event_key,
            rotations=keys.rotations,
            complete=False,
        )
    return entries


def _check_signatures(
    log: Sequence[Entry], *, event_key: str, rotations: Sequence[Rotation]
) -> None:
    keys = [*(rotation.old for rotation in rotations), event_key]
    chained = [*(rotation.new for rotation in rotations), event_key]
    if keys[1:] != chained[:-1] or not all(rotation.holds() for rotation in rotations):
        raise LedgerError("Expected exchanges of keys that follow each other, found others.")
    place = 0
    for entry in log:
        key, signature = entry.content.get("key"), entry.content.get("signature")
        # Only keys of this time or later ones: an old one is gone.
        if (
            key not in keys[place:]
            or not isinstance(signature, str)
            or not is_signed(signed_part(entry), signature=signature, event_key=key)
        ):
            raise LedgerError(
                f"Expected entry {entry.sequence} of the audit log to be signed by the site's key "
                "of its time, found another signature."
            )
        place = keys.index(key)


def _check_ledger(log: Sequence[Entry], *, ledger: Sequence[Entry], complete: bool) -> None:
    name = ledger[0].hash
    copies = {entry.content["hash"]: entry for entry in log if entry.content.get("ledger") == name}
    place = 0
    for entry in ledger:
        copy = copies.pop(entry.hash, None)
        if copy is None and not complete:
            break
        if copy is None or copy.sequence < place or not _is_copy(copy, entry, ledger=name):
            raise LedgerError(
                f"Expected entry {entry.sequence} ({entry.kind}) of the ledger in the audit log, "
                "at its place and as it is, found none or another."
            )
        place = copy.sequence
    # What followed in a ledger that was restored from an old copy is in the log alone.
    if copies and complete and not any(entry.kind == "acknowledge" for entry in ledger):
        raise LedgerError(
            f"Expected entries of the ledger only in the audit log, found {len(copies)} that it "
            "does not hold."
        )


def _is_copy(copy: Entry, entry: Entry, *, ledger: str) -> bool:
    expected = of_ledger(entry, ledger=ledger)
    return copy.kind == entry.kind and expected.items() <= copy.content.items()
