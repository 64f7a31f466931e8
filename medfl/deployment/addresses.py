"""HOST:PORT as people write it, and where a server listens.

A host is a DNS name or an IP address; an IPv6 address is in brackets wherever a port follows.
A server listens with IPv4 and IPv6: to this machine alone if it is called so, else everywhere.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from contextlib import ExitStack

ADDRESS = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
"""What HOST:PORT looks like."""

LOOPBACK = "127.0.0.1"

_HERE = (LOOPBACK, "::1")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def split(text: str) -> tuple[str, int]:
    """Host, without brackets, and port.

    Raises:
        ValueError: If it is no HOST:PORT.
    """
    host, _, port = text.rpartition(":")
    if not re.fullmatch(ADDRESS, text) or not 0 < int(port) < 65536:
        raise ValueError(f"Expected HOST:PORT, found {text!r}.")
    return bare(host), int(port)


def joined(host: str, port: int) -> str:
    """HOST:PORT, with brackets where they are needed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bare(host: str) -> str:
    """A host without brackets, an IPv6 address in its shortest form."""
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.IPv6Address(inner))
    except ValueError:
        return host


def listening_addresses(host: str) -> tuple[str, ...]:
    """Addresses on which a server listens that is called so: one of IPv4 and one of IPv6."""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return _HERE if here else _EVERYWHERE


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets for a server, which do not listen yet.

    Args:
        host: What the server is called.
        port: TCP port of this machine.

    Raises:
        OSError: If another process listens there, or the machine has not the family of `host`.
    """
    with ExitStack() as opened:
        found = []
        for address in listening_addresses(host):
            try:
                found.append(opened.enter_context(_bound(address, port)))
            except OSError as error:
                # A machine without IPv6 serves by the name that it has.
                if ":" in host or ":" not in address or error.errno not in _NO_SUCH_FAMILY:
                    raise
        opened.pop_all()
    return found


def loopback_socket() -> socket.socket:
    """A socket on a port of this machine that is nobody else's while it is open.

    It does not listen yet. A number that was merely free a moment ago may be somebody's by the time
    that it is listened on; here, a client reaches the server that the socket was made for, or
    nothing.
    """
    with ExitStack() as opened:
        # Without SO_REUSEADDR, with which another process might share the port.
        made = opened.enter_context(socket.socket())
        made.bind((LOOPBACK, 0))
        opened.pop_all()
    return made


def is_free(host: str, port: int) -> bool:
    """Whether a server that is called so can listen on a port."""
    try:
        for each in bound_sockets(host, port):
            each.close()
    except OSError:
        return False
    return True


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as opened:
        made = opened.enter_context(socket.socket(family))
        # As servers do, so that connections that have just ended do not count.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own, so that the guard sees each client's plain address.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        opened.pop_all()
    return made
