"""HOST:PORT with names and addresses of both families, and where a server listens."""

from __future__ import annotations

import errno
import random
import socket

import pytest

from medfl.deployment import addresses
from medfl.deployment.addresses import (
    bare,
    bound_sockets,
    is_free,
    joined,
    listening_addresses,
    loopback_socket,
    split,
)
from medfl.deployment.processes import free_port


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("medfl.example.org:8443", "medfl.example.org", 8443),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[2001:DB8:0:0::7]:443", "2001:db8::7", 443),
    ],
)
def test_an_address_is_taken_apart_and_put_together(text: str, host: str, port: int) -> None:
    assert split(text) == (host, port)
    assert split(joined(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":1", "host:0", "host:65536", "::1:8443", "[::1]", "a b:1", "[x]:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Expected HOST:PORT"):
        split(text)


def test_brackets_belong_to_the_port_and_not_to_the_host() -> None:
    assert bare("[::1]") == bare("::1") == bare("0:0:0:0:0:0:0:1") == "::1"
    assert bare("medfl.example.org") == "medfl.example.org"
    assert joined("::1", 8443) == "[::1]:8443"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_server_of_this_machine_listens_to_nobody_else(host: str) -> None:
    assert listening_addresses(host) == ("127.0.0.1", "::1")


@pytest.mark.parametrize("host", ["medfl.example.org", "10.1.2.3", "2001:db8::7"])
def test_any_other_server_listens_with_both_families(host: str) -> None:
    assert listening_addresses(host) == ("0.0.0.0", "::")  # noqa: S104


@needs_ipv6
@pytest.mark.parametrize("host", ["localhost", "medfl.example.org"])
def test_clients_of_both_families_are_seen_under_their_own_addresses(host: str) -> None:
    """The guard goes by them: an IPv4 client must not look like one of IPv6."""
    port = free_port()
    sockets = bound_sockets(host, port)
    for each, client in zip(sockets, ("127.0.0.1", "::1"), strict=True):
        each.listen()
        with socket.create_connection((client, port), timeout=10):
            accepted, address = each.accept()
            accepted.close()
        assert address[0] == client
        each.close()


@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_a_port_is_free_when_nobody_listens_on_it(address: str) -> None:
    port = free_port()
    assert is_free("localhost", port)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family):
        assert not is_free("localhost", port)
        assert not is_free("medfl.example.org", port)
    assert is_free("localhost", port)


def test_a_free_port_is_not_one_that_connections_are_given() -> None:
    """Nor does any other caller get it, even if random numbers are seeded alike."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert free_port() < 32_768 <= given.getsockname()[1]
    ports = set()
    for _ in range(20):
        random.seed(7)
        ports.add(free_port())
    assert len(ports) > 10


def test_a_loopback_socket_keeps_its_port_before_it_listens() -> None:
    with loopback_socket() as held:
        port = held.getsockname()[1]
        for options in ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)):
            with socket.socket() as rival:
                for option in options:
                    rival.setsockopt(socket.SOL_SOCKET, option, 1)
                with pytest.raises(OSError, match="in use"):
                    rival.bind(("127.0.0.1", port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
        held.listen()
        socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_a_machine_without_ipv6_serves_by_name_and_by_no_ipv6_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound = addresses._bound

    def without_ipv6(address: str, port: int) -> socket.socket:
        if ":" in address:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return bound(address, port)

    monkeypatch.setattr(addresses, "_bound", without_ipv6)
    port = free_port()
    (only,) = bound_sockets("localhost", port)
    only.close()
    with pytest.raises(OSError, match="not supported"):
        bound_sockets("::1", port)
