"""Every way in which a site cannot reach its server, on real TLS servers of this machine."""

from __future__ import annotations

import ipaddress
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medfl.findings import Finding
from medfl.preflight.network import check_server

SHORT_SECONDS = 0.5


@dataclass
class Authority:
    """Signs certificates of servers; `ca` is its own, in PEM."""

    folder: Path
    days: tuple[float, float] = (-1, 3650)
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        unsigned = self._builder(self.key, days=self.days).subject_name(self.name)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = unsigned.add_extension(constraints, critical=True).sign(
            self.key, hashes.SHA256()
        )
        self.ca = self.folder / "ca.crt"
        self.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, key: ec.EllipticCurvePrivateKey, *, days: tuple[float, float]
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
        )

    def issue(
        self,
        *names: str,
        addresses: tuple[str, ...] = ("127.0.0.1",),
        days: tuple[float, float] = (-1, 365),
    ) -> Path:
        """A file with a server's key and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        own_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        alternatives = x509.SubjectAlternativeName(
            [
                *map(x509.DNSName, names),
                *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
            ]
        )
        unsigned = self._builder(key, days=days).subject_name(own_name)
        certificate = unsigned.add_extension(alternatives, critical=False).sign(
            self.key, hashes.SHA256()
        )
        path = self.folder / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return path


class Quiet(ThreadingHTTPServer):
    """A server of this machine that says nothing of clients who leave."""

    def handle_error(self, *_: Any) -> None:
        """Nothing: a client that refuses a certificate leaves in mid-handshake."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


@contextmanager
def serving(
    certificate: Path | None,
    *,
    clock_shift_seconds: float = 0.0,
    dated: bool = True,
    connections: int = 1000,
) -> Iterator[str]:
    """A server that answers /health, over TLS where it has a certificate; yields HOST:PORT.

    After so many connections it hangs up on each.
    """

    class Health(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            self.send_response_only(200)
            if dated:
                now = time.time() + clock_shift_seconds
                self.send_header("Date", formatdate(now, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Tired(Quiet):
        left = connections

        def verify_request(self, *_: Any) -> bool:
            self.left -= 1
            return self.left >= 0

    server = Tired(("127.0.0.1", 0), Health)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    with running(server) as address:
        yield address


@dataclass
class Seen:
    """What a proxy was asked for."""

    targets: list[str] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)


@contextmanager
def proxy(target: str, *, seen: Seen, allowed: bool = True) -> Iterator[str]:
    """A proxy for whom every name is the server at `target`."""

    class Connect(BaseHTTPRequestHandler):
        timeout = 10

        def do_CONNECT(self) -> None:
            seen.targets.append(self.path)
            seen.credentials.append(self.headers["Proxy-Authorization"])
            if not allowed:
                self.send_error(403)
                return
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as upstream:
                self.send_response_only(200)
                self.end_headers()
                ends = {self.connection: upstream, upstream: self.connection}
                while ready := select.select(list(ends), [], [], 10)[0]:
                    for end in ready:
                        content = end.recv(65536)
                        if not content:
                            return
                        ends[end].sendall(content)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with running(Quiet(("127.0.0.1", 0), Connect)) as address:
        yield address


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the proxies that a test names."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def problems(findings: list[Finding]) -> list[Finding]:
    """Everything but notes."""
    return [finding for finding in findings if finding.severity != "note"]


def the_problem(findings: list[Finding]) -> Finding:
    """The only one."""
    (problem,) = problems(findings)
    assert problem.fix
    assert problem.patient == ""
    return problem


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_good_server_leaves_a_note_of_the_clock_with_its_resolution(
    authority: Authority,
) -> None:
    with serving(authority.issue()) as server:
        (note,) = check_server(server, ca=authority.ca)
    assert note.severity == "note"
    assert note.name == server
    assert "clock" in note.rule
    assert "good to 2 s" in note.rule


def test_a_certificate_of_another_authority_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    with serving(authority.issue()) as server:
        problem = the_problem(check_server(server, ca=other.ca))
    assert problem.severity == "error"
    assert str(other.ca) in problem.rule


def test_a_private_authority_is_refused_without_its_file(authority: Authority) -> None:
    with serving(authority.issue()) as server:
        assert "this machine trusts" in the_problem(check_server(server, ca=None)).rule


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_that_holds_no_authority_is_named(
    authority: Authority, tmp_path: Path, content: bytes | None
) -> None:
    ca = tmp_path / "wrong.crt"
    if content is not None:
        ca.write_bytes(content)
    with serving(authority.issue()) as server:
        assert the_problem(check_server(server, ca=ca)).name == str(ca)


@pytest.mark.parametrize("days", [(-30, -1), (1, 365)])
def test_a_certificate_out_of_its_dates_is_refused(
    authority: Authority, days: tuple[float, float]
) -> None:
    with serving(authority.issue(days=days)) as server:
        problem = the_problem(check_server(server, ca=authority.ca))
    assert problem.severity == "error"
    assert "valid now" in problem.rule


@pytest.mark.parametrize(("left", "severities"), [(29, ["warning"]), (31, [])])
def test_a_certificate_that_ends_within_30_days_is_a_warning(
    authority: Authority, left: float, severities: list[str]
) -> None:
    with serving(authority.issue(days=(-1, left))) as server:
        found = problems(check_server(server, ca=authority.ca))
    assert [finding.severity for finding in found] == severities


def test_an_authority_that_has_expired_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "old", days=(-30, -1))
    with serving(authority.issue()) as server:
        assert "expired" in the_problem(check_server(server, ca=authority.ca)).value


@pytest.mark.parametrize(
    ("names", "addresses"), [(("elsewhere.test",), ()), ((), ("127.0.0.2",)), ((), ())]
)
def test_a_certificate_for_another_name_is_refused(
    authority: Authority, names: tuple[str, ...], addresses: tuple[str, ...]
) -> None:
    with serving(authority.issue(*names, addresses=addresses)) as server:
        problem = the_problem(check_server(server, ca=authority.ca))
    assert problem.rule == "a certificate for 127.0.0.1"
    assert problem.value == f"one for {', '.join(names or addresses) or 'no name'}"


def test_a_certificate_that_is_wrong_in_every_way_is_told_so_at_once(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    certificate = authority.issue("elsewhere.test", addresses=(), days=(-30, -1))
    with serving(certificate, clock_shift_seconds=60) as server:
        found = problems(check_server(server, ca=other.ca))
    rules = " / ".join(finding.rule for finding in found)
    for part in ("valid now", "for 127.0.0.1", "signed by", "clocks within"):
        assert part in rules
    assert len(found) == 4


def test_a_name_is_resolved(authority: Authority) -> None:
    with serving(authority.issue("localhost")) as server:
        port = server.rpartition(":")[2]
        assert problems(check_server(f"localhost:{port}", ca=authority.ca)) == []


def test_a_name_without_an_address_is_named(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    problem = the_problem(check_server("fl.hospital.test:443", ca=authority.ca))
    assert problem.rule == "an address of fl.hospital.test (DNS)"
    assert problem.value == "Name or service not known"


def test_a_refused_port_is_named(authority: Authority) -> None:
    server = f"127.0.0.1:{closed_port()}"
    problem = the_problem(check_server(server, ca=authority.ca))
    assert problem.value == "a refused connection"
    assert server in problem.fix


def test_a_server_that_never_answers_is_given_up(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        found = check_server(server, ca=authority.ca, timeout_seconds=SHORT_SECONDS)
        waited = time.monotonic() - started
    assert the_problem(found).rule == f"an answer over TLS within {SHORT_SECONDS} s"
    assert waited < 10 * SHORT_SECONDS


def test_a_connection_that_is_swallowed_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowed(*_: Any, **__: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", swallowed)
    found = check_server("127.0.0.1:443", ca=authority.ca, timeout_seconds=SHORT_SECONDS)
    assert the_problem(found).value == f"no answer within {SHORT_SECONDS} s"


def test_a_server_without_tls_is_named(authority: Authority) -> None:
    with serving(None) as server:
        assert "over TLS" in the_problem(check_server(server, ca=authority.ca)).rule


@pytest.mark.parametrize("shift_seconds", [10.0, 6.5, -6.5, -400.0])
def test_clocks_apart_are_an_error(authority: Authority, shift_seconds: float) -> None:
    with serving(authority.issue(), clock_shift_seconds=shift_seconds) as server:
        problem = the_problem(check_server(server, ca=authority.ca))
    assert problem.severity == "error"
    least, _, most = problem.value.split(" by ")[1].removesuffix(" s").partition(" to ")
    # The printed numbers are rounded.
    assert float(least) - 0.1 <= shift_seconds <= float(most) + 0.1


def test_a_server_that_does_not_state_its_time_is_a_warning(authority: Authority) -> None:
    with serving(authority.issue(), dated=False) as server:
        assert the_problem(check_server(server, ca=authority.ca)).severity == "warning"


def test_what_was_found_before_a_server_hung_up_stays_found(authority: Authority) -> None:
    # Connections: the first, to see the certificate, and to ask for its name.
    with serving(authority.issue("elsewhere.test", addresses=()), connections=3) as server:
        found = problems(check_server(server, ca=authority.ca))
    assert [finding.rule.split()[1] for finding in found] == ["certificate", "answer"]


@pytest.mark.parametrize("address", ["a b:443", f"{'a' * 64}.test:443", "x..test:443"])
def test_a_name_that_cannot_be_one_is_named(address: str) -> None:
    assert the_problem(check_server(address, ca=None)).name == address


@pytest.mark.parametrize(
    "address", ["", "server", "server:", "server:port", ":443", "server:70000"]
)
def test_an_address_that_is_none_is_named(address: str) -> None:
    assert the_problem(check_server(address, ca=None)).name == address


def test_the_way_through_a_proxy_needs_no_address_of_the_server(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with (
        serving(authority.issue("fl.hospital.test", addresses=())) as server,
        proxy(server, seen=seen) as address,
    ):
        monkeypatch.setenv("https_proxy", f"http://site:secret@{address}")
        found = check_server("fl.hospital.test:443", ca=authority.ca)
    assert problems(found) == []
    assert found[0].value == f"through the proxy {address}"
    assert set(seen.targets) == {"fl.hospital.test:443"}
    assert set(seen.credentials) == {"Basic c2l0ZTpzZWNyZXQ="}
    assert "secret" not in str(found)


def test_a_proxy_that_forbids_the_way_is_named(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with proxy("127.0.0.1:9", seen=Seen(), allowed=False) as address:
        monkeypatch.setenv("https_proxy", f"http://{address}")
        problem = the_problem(check_server("fl.hospital.test:443", ca=authority.ca))
    assert "403" in problem.value


def test_a_proxy_that_is_none_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with serving(authority.issue()) as address:  # speaks TLS where a proxy speaks HTTP
        monkeypatch.setenv("https_proxy", f"http://{address}")
        problem = the_problem(check_server("fl.hospital.test:443", ca=authority.ca))
    assert problem.rule == "a server that takes connections"


def test_a_server_in_no_proxy_is_reached_directly(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    with serving(authority.issue()) as server:
        (note,) = check_server(server, ca=authority.ca)
    assert "clock" in note.rule


def test_a_proxy_that_is_no_address_is_named_without_its_password(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("https_proxy", "http://site:secret@proxy")
    problem = the_problem(check_server("fl.hospital.test:443", ca=authority.ca))
    assert "https_proxy" in problem.rule
    assert "secret" not in str(problem)


def test_an_ipv6_address_behind_a_proxy_is_refused_before_the_site_is(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's client asks the proxy for it without brackets, which no proxy understands."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    problem = the_problem(check_server("[2001:db8::7]:8443", ca=authority.ca))
    assert (problem.name, problem.severity) == ("[2001:db8::7]:8443", "error")
    assert "behind a proxy" in problem.rule


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("bypass", "missing"),
    [
        ("", "no 127.0.0.1 and no localhost"),
        ("127.0.0.1", "no localhost"),
        ("fl.test,localhost", "no 127.0.0.1"),
        ("localhost, 127.0.0.1", ""),
        ("*", ""),
    ],
)
def test_a_proxy_must_leave_loopback_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, bypass: str, missing: str
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("NO_PROXY", bypass)
    found = check_server(f"127.0.0.1:{closed_port()}", ca=None)
    assert [f.value for f in found if f.name == "no_proxy"] == ([missing] if missing else [])
