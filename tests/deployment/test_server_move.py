"""A server under another address: its authority stays, and so does what hospitals have."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.coordinator.superlink import arguments
from medfl.deployment.invitation import read_invitation
from medfl.deployment.lock import exclusive
from medfl.errors import ConfigError, FederationError


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", host="old.example.org", port=8443)


def accepted(server: ServerFolder, host: x509.GeneralName) -> bool:
    """Whether a hospital with the server's authority accepts it under a name."""
    store = Store([x509.load_pem_x509_certificate(server.authority.read_bytes())])
    shown = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    verifier = PolicyBuilder().store(store).build_server_verifier(host)
    return len(verifier.verify(shown, [])) == 2


def test_hospitals_keep_their_authority_when_a_server_moves(server: ServerFolder) -> None:
    authority = server.authority.read_bytes()
    moved = server.move(host="new.example.org", port=443, listen_port=9443)
    assert moved.authority.read_bytes() == authority
    assert accepted(moved, x509.DNSName("new.example.org"))
    assert (moved.address, moved.local_address) == ("new.example.org:443", "127.0.0.1:9443")
    assert moved.invite("north").server == "new.example.org:443"
    assert moved.require_usable_certificate().fits_key
    assert ServerFolder(server.path).address == moved.address


def test_what_is_not_named_stays(server: ServerFolder) -> None:
    assert server.move(port=443).address == "old.example.org:443"
    assert ServerFolder(server.path).move(listen_port=9443).local_address == "127.0.0.1:9443"
    moved = ServerFolder(server.path).move(host="new.example.org")
    assert (moved.address, moved.local_address) == ("new.example.org:443", "127.0.0.1:9443")
    moved = moved.move(listen_port=443)
    assert moved.local_address == "127.0.0.1:443"
    # An earlier version can read it again.
    assert "listen_port" not in json.loads((server.path / "server.json").read_text())
    with pytest.raises(ConfigError, match="found none"):
        moved.move()


def test_a_running_server_does_not_move(server: ServerFolder) -> None:
    before = server.certificate.read_bytes()
    with (
        exclusive(server.path / "server.lock", noun="a server's folder"),
        pytest.raises(FederationError, match="no other process"),
    ):
        server.move(host="new.example.org")
    assert server.certificate.read_bytes() == before


@pytest.mark.parametrize("change", [{"host": "two words"}, {"port": 70000}, {"listen_port": -1}])
def test_a_place_that_cannot_be_changes_nothing(
    change: dict[str, object], server: ServerFolder
) -> None:
    before = {path.name: path.read_bytes() for path in server.path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="Expected"):
        server.move(**change)  # type: ignore[arg-type]
    after = {path.name: path.read_bytes() for path in server.path.iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before


def test_a_port_behind_a_router_is_told_to_hospitals_and_not_listened_on(tmp_path: Path) -> None:
    server = ServerFolder.create(
        tmp_path / "server", host="medfl.example.org", port=443, listen_port=8443
    )
    given = arguments(server)
    assert given[given.index("--port") + 1] == "8443"
    assert server.invite("north").server == "medfl.example.org:443"


@pytest.mark.parametrize("host", ["2001:db8::7", "[2001:db8::7]", "2001:0DB8:0::7"])
def test_an_ipv6_address_stands_in_brackets_before_its_port(host: str, tmp_path: Path) -> None:
    server = ServerFolder.create(tmp_path / "server", host=host, port=8443)
    assert (server.host, server.address) == ("2001:db8::7", "[2001:db8::7]:8443")
    assert accepted(server, x509.IPAddress(ipaddress.ip_address("2001:db8::7")))
    (tmp_path / "north.invite").write_text(server.invite("north").text)
    assert read_invitation(tmp_path / "north.invite").server == "[2001:db8::7]:8443"
