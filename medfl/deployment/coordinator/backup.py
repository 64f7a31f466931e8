"""Backup and restoration of a server: authority, certificate, secrets, and the list of hospitals.

Flower's database is left out. Which nodes may join follows from the list of hospitals, with which a
server fills an empty database at its start; a run goes on from its run folder. All else that the
database holds is messages under way and runs that are said to be running: an old one would deliver
requests a second time, and begin with runs that nobody follows. Run folders are left out too: they
lie where the coordinator put them, have their own size, and are copied as folders.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from medfl.deployment.backup import (
    Kind,
    Manifest,
    read_backup,
    require_new_file,
    require_not_running,
    restoring,
    write_backup,
)
from medfl.deployment.certificates import read_certificate
from medfl.deployment.coordinator.options import OPTIONS
from medfl.deployment.coordinator.server_folder import FOLDERS, ServerFolder
from medfl.deployment.lock import exclusive
from medfl.errors import ConfigError

_AUTHORITY = "ca.crt"

SERVER = Kind(
    name="server",
    required=frozenset(
        {
            *("server.json", _AUTHORITY, "ca.key", "server.crt", "server.key"),
            *("superexec.secret", "control.secret"),
        }
    ),
    optional=frozenset({"sites.json", "study.toml", OPTIONS}),
    lock="server.lock",
)

_PATIENCE_SECONDS = 10.0


def backup_server(path: Path, *, out: Path) -> Manifest:
    """Write a backup of a server, which may run meanwhile.

    Args:
        path: The server's folder.
        out: A new file.

    Raises:
        ConfigError: If the folder is damaged or none, or the file exists.
        FederationError: If the list of hospitals is being changed for long.
    """
    require_new_file(out)
    folder = ServerFolder(path)
    members: dict[str, bytes] = {}
    # Neither a new certificate beside an old key nor half of a change.
    with exclusive(
        folder.path / "sites.lock", noun="a list of sites", patience_seconds=_PATIENCE_SECONDS
    ):
        _require_whole(folder)
        for name in sorted(SERVER.required | SERVER.optional):
            with suppress(FileNotFoundError):
                members[name] = (folder.path / name).read_bytes()
    return write_backup(
        out,
        kind=SERVER,
        identity=_identity(members[_AUTHORITY]),
        name=folder.federation,
        folder=folder.path,
        members=members,
    )


def restore_server(path: Path, *, to: Path) -> tuple[Manifest, ServerFolder]:
    """Restore a server into a new folder.

    Args:
        path: What `backup_server` wrote.
        to: New or empty.

    Raises:
        ConfigError: If the backup is damaged or none, or the folder has something in it.
        FederationError: If the server runs on this machine.
    """
    backup = read_backup(path, kind=SERVER)
    old = backup.manifest.folder
    with suppress(OSError):  # it is gone, or on another machine
        if _identity((old / _AUTHORITY).read_bytes()) == backup.manifest.identity:
            require_not_running(old, kind=SERVER)
    with restoring(backup, to) as draft:
        if _identity(backup.members[_AUTHORITY]) != backup.manifest.identity:
            raise ConfigError(f"{path}: expected the authority of its manifest, found another.")
        _require_whole(ServerFolder(draft))
        for name in FOLDERS:
            (draft / name).mkdir(mode=0o700)
    return backup.manifest, ServerFolder(to)


def _require_whole(folder: ServerFolder) -> None:
    """Refuse keys that belong to other certificates, and a damaged list of hospitals."""
    folder.roster()
    authority = read_certificate(folder.authority, key=folder.path / "ca.key")
    for path, certificate in (
        (folder.authority, authority),
        (folder.certificate, folder.read_certificate()),
    ):
        if not certificate.fits_key:
            raise ConfigError(f"{path}: expected the certificate of its key, found another key's.")


def _identity(authority: bytes) -> str:
    return hashlib.sha256(authority).hexdigest()
