"""`ServerStatus`: a server and its hospitals now, off its files and, if it runs, as it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from medfl.deployment.certificates import Certificate
from medfl.deployment.coordinator.roster import Hospital, State
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.flower.control import Connection, Control, Unreachable


@dataclass(frozen=True, kw_only=True)
class SiteStatus:
    """One hospital.

    Attributes:
        name: Its name.
        state: What it is.
        since: Since when.
        reason: Why it was revoked; empty if it was not.
        fingerprint: Of its keys; empty before it has any.
        connected: Whether its node is there; None where nobody knows.
        connection_since: Since when it is there, or away; None where nobody knows.
    """

    name: str
    state: State
    since: datetime
    reason: str
    fingerprint: str
    connected: bool | None
    connection_since: datetime | None


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """One server.

    Attributes:
        federation: Name of the federation.
        address: Where hospitals reach the server.
        running: Whether it answers on this machine.
        certificate: What it shows.
        sites: All hospitals by name.
    """

    federation: str
    address: str
    running: bool
    certificate: Certificate
    sites: tuple[SiteStatus, ...]


def read_status(folder: ServerFolder) -> ServerStatus:
    """Ask the server on this machine, and read the rest off its files.

    Args:
        folder: The server's files.

    Raises:
        ConfigError: If they are damaged.
    """
    try:
        with Control(folder) as control:
            connections: Mapping[bytes, Connection] | None = control.connections()
    except Unreachable:
        connections = None
    return status_of(folder, connections=connections)


def status_of(
    folder: ServerFolder, *, connections: Mapping[bytes, Connection] | None
) -> ServerStatus:
    """A server's status.

    Args:
        folder: The server's files.
        connections: By public key (PEM), as the server says; None if it does not answer.

    Raises:
        ConfigError: If the files are damaged.
    """
    return ServerStatus(
        federation=folder.federation,
        address=folder.address,
        running=connections is not None,
        certificate=folder.read_certificate(),
        sites=tuple(_site(hospital, connections or {}) for hospital in folder.roster()),
    )


def _site(hospital: Hospital, connections: Mapping[bytes, Connection]) -> SiteStatus:
    site = hospital.site
    connection = connections.get(site.node_key_pem) if site else None
    return SiteStatus(
        name=hospital.name,
        state=hospital.state,
        since=hospital.since,
        reason=hospital.reason,
        fingerprint=site.fingerprint if site else "",
        connected=connection.connected if connection else None,
        connection_since=connection.since if connection else None,
    )
