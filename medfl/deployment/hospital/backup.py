"""Backup and restoration of a site: keys, site file, and consistent copies of ledger and audit log.

What is left out is left out on purpose. `secure_sums`: a round that is answered again from an old
state can be unmasked. The outbox: an old update would be sent again as if it were new. Cache,
models and logs: they hold patients, or can be had again. The witness: it is what tells a restored
ledger from the newest, and could not do so if it went back with it.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medfl.config import load_site
from medfl.config.site_template import SITE_FILE
from medfl.deployment.backup import (
    Kind,
    Manifest,
    read_backup,
    require_new_file,
    require_not_running,
    restoring,
    write_backup,
)
from medfl.deployment.hospital.departure import LAST_EXPORT
from medfl.deployment.hospital.participation import LEFT, LOCK, PAUSED, Departure, require_not_left
from medfl.deployment.hospital.site_file import load_hospital
from medfl.deployment.invitation import KEPT as INVITATION
from medfl.errors import ConfigError, LedgerError
from medfl.privacy.ledger.head import HEAD, LedgerHead
from medfl.privacy.ledger.snapshot import check_copy, copy_chain, copy_ledger
from medfl.privacy.ledger.store import DATABASE, LedgerStore
from medfl.privacy.ledger.witness import Witness
from medfl.protocol.keys import EVENT_KEY, KEYS, NODE_KEY, PUBLIC, SiteKeys
from medfl.site.audit_log import AUDIT_LOG, LogStore
from medfl.site.state_folder import LEDGER, SITE_KEY

_OF_LOG = tuple(f"{AUDIT_LOG}/{name}" for name in (LogStore.database, HEAD))
_PRIVATE_KEYS = (f"{KEYS}/{EVENT_KEY}", f"{KEYS}/{NODE_KEY}")
_OPTIONAL = (PUBLIC, "ca.crt", INVITATION, PAUSED, LEFT, LAST_EXPORT)

SITE = Kind(
    name="site",
    required=frozenset({SITE_FILE, SITE_KEY, f"{LEDGER}/{DATABASE}", f"{LEDGER}/{HEAD}"}),
    optional=frozenset({*_PRIVATE_KEYS, *_OPTIONAL, *_OF_LOG}),
    lock=LOCK,
)

_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class RestoredSite:
    """A site as it came out of a backup.

    Attributes:
        manifest: Of the backup.
        head: Of the restored ledger.
        is_newest: Whether the witness of this machine holds it for the newest.
        remembered: The newest entry that the witness remembers of it; None if it does not know the
            ledger.
        other: Another folder of this machine in which the ledger is too; None without one.
        state: What the site file names as its state folder; None if it cannot be read here.
        has_left: Whether the site had left for good.
    """

    manifest: Manifest
    head: LedgerHead
    is_newest: bool
    remembered: LedgerHead | None
    other: Path | None
    state: Path | None
    has_left: bool


def backup_site(site_file: Path, *, out: Path) -> tuple[Manifest, LedgerHead]:
    """Write a backup of a hospital's site, which may run meanwhile.

    Args:
        site_file: The site's file.
        out: A new file.

    Returns:
        The manifest, and the head of the ledger in the backup.

    Raises:
        ConfigError: If the site has no keys, or the file exists.
        LedgerError: If the ledger is missing, damaged, or not the newest.
    """
    require_new_file(out)
    site = load_hospital(site_file)
    state = site.state.resolve()
    members = {SITE_FILE: site_file.read_bytes(), SITE_KEY: _required(state / SITE_KEY)}
    for name in _OPTIONAL:
        with suppress(FileNotFoundError):
            members[name] = (state / name).read_bytes()
    if Departure.read(state) is None:
        members |= _keys(state)
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=state) as scratch:  # mode 0700
        copy = Path(scratch) / LEDGER
        ledger, head = copy_ledger(state / LEDGER, to=copy, witness=Witness.of_this_machine())
        members |= {f"{LEDGER}/{name}": (copy / name).read_bytes() for name in (DATABASE, HEAD)}
        if LogStore.is_in(state / AUDIT_LOG):  # after the ledger, so that it holds as much or more
            copy_chain(LogStore, state / AUDIT_LOG, to=Path(scratch) / AUDIT_LOG)
            members |= {name: (Path(scratch) / name).read_bytes() for name in _OF_LOG}
    manifest = write_backup(
        out, kind=SITE, identity=ledger, name=site.name, folder=state, members=members
    )
    return manifest, head


def restore_site(path: Path, *, to: Path) -> RestoredSite:
    """Restore a site into a new folder.

    Nothing is told to the witness: a ledger that is older than it remembers stays refused until
    the administrator acknowledges it, which charges what is missing.

    Args:
        path: What `backup_site` wrote.
        to: New or empty.

    Raises:
        ConfigError: If the backup is damaged or none, the folder has something in it, or the site
            has left for good since.
        LedgerError: If the ledger or the audit log in the backup is damaged, or the witness cannot
            be used.
        FederationError: If the site runs on this machine.
    """
    backup = read_backup(path, kind=SITE)
    manifest = backup.manifest
    has_left = LEFT in backup.members
    if not has_left and not backup.members.keys() >= set(_PRIVATE_KEYS):
        raise ConfigError(f"{path}: expected the keys of a site, found none.")
    memory = Witness.of_this_machine().recall(manifest.identity)
    places = [manifest.folder, *([Path(memory.folder).parent] if memory else [])]
    for place in dict.fromkeys(places):
        require_not_running(place, kind=SITE)
        with suppress(OSError):  # another account's
            if not has_left:
                require_not_left(place)
    with restoring(backup, to) as draft:
        ledger, head = check_copy(draft / LEDGER)
        if ledger != manifest.identity:
            raise LedgerError(f"{path}: expected the ledger of its manifest, found another.")
        if backup.members.keys() & set(_OF_LOG):
            check_copy(draft / AUDIT_LOG, kind=LogStore)
        if not has_left:
            SiteKeys.read(draft / KEYS)
        with LedgerStore.open(draft / LEDGER) as store:
            is_newest = memory is not None and store.holds(memory.head)
    to = to.resolve()
    others = [place for place in places if place != to and _holds(place, ledger=ledger)]
    return RestoredSite(
        manifest=manifest,
        head=head,
        is_newest=is_newest,
        remembered=memory.head if memory is not None else None,
        other=others[0] if others else None,
        state=_stated_folder(to / SITE_FILE),
        has_left=has_left,
    )


def _required(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a file of the site, found none.") from None


def _keys(state: Path) -> dict[str, bytes]:
    """Both private keys as they belong together, although they may be exchanged meanwhile."""
    for _ in range(_TRIES):
        SiteKeys.read(state / KEYS)  # finishes an exchange that a crash cut short
        before, *_ = keys = [_required(state / name) for name in _PRIVATE_KEYS]
        if _required(state / _PRIVATE_KEYS[0]) == before:
            return dict(zip(_PRIVATE_KEYS, keys, strict=True))
    raise ConfigError(f"{state / KEYS}: the keys kept changing while they were being backed up.")


def _holds(state: Path, *, ledger: str) -> bool:
    """Whether a ledger is in a state folder, as far as this account can see."""
    # A damaged one has no name: that is why there is a restoration.
    can_be_opened = os.access(state / LEDGER / DATABASE, os.R_OK | os.W_OK)
    return can_be_opened and LedgerStore.name_in(state / LEDGER) == ledger


def _stated_folder(site_file: Path) -> Path | None:
    try:
        return load_site(site_file).state.resolve()
    except ConfigError:  # made for another machine, with variables that are not set here
        return None
