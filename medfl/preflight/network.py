"""The way from a site to its server: name, proxy, port, certificate and clock, each judged apart.

A certificate can be wrong in several ways at once, and OpenSSL stops at the first. So chain, name
and dates are each asked for by a handshake of their own, and at last all of it together, as Flower
will. The clock comes from the HTTP header Date, which has whole seconds and which servers renew
about once a second: what a server's clock says is known to 2 s and the time of one request.
"""

from __future__ import annotations

import base64
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from medfl.deployment.addresses import joined
from medfl.deployment.certificates import EXPIRES_SOON
from medfl.findings import Finding, Severity

CLOCK_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0

_LOOPBACK = ("127.0.0.1", "localhost")
# The header Date states the second in which it was made, and may be up to a second old.
_DATE_SECONDS = 2.0
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl does not name.
_ANY_TIME = ssl.VerifyFlags(0x200000)
# OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_NAME_MISMATCH = (62, 64)
# Beside the network's own errors: a name that cannot be one, and an answer that is no HTTP.
_FAULTS = (OSError, ValueError, HTTPException)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server and the way to it.

    Attributes:
        host: Name or literal address.
        port: Its port.
        proxy: The proxy that the environment names for it, or None for the direct way.
        timeout_seconds: Longest wait for a connection, a handshake or an answer.
    """

    host: str
    port: int
    proxy: SplitResult | None
    timeout_seconds: float

    def __str__(self) -> str:
        return joined(self.host, self.port)


def check_server(
    address: str, *, ca: Path | None, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[Finding]:
    """Go the way to the server as far as it goes.

    Args:
        address: ``HOST:PORT``.
        ca: Certificate of the authority that signed the server's, in PEM; None takes the
            authorities that this machine trusts.
        timeout_seconds: Longest wait for a connection, a handshake or an answer.

    Returns:
        All findings; the last is a note with the clock where nothing else is wrong.
    """
    proxies = getproxies()
    findings = list(_loopback_findings(proxies))
    try:
        server = _server(address, proxies=proxies, timeout_seconds=timeout_seconds)
    except ValueError as error:
        rule = "HOST:PORT of the server, and of the proxy where https_proxy names one"
        fix = "Correct the option --server or the variable https_proxy."
        return [*findings, _finding("error", address, rule=rule, value=str(error), fix=fix)]
    if server.proxy is not None:
        findings.append(
            _finding(
                "note",
                server,
                rule="a way to the server",
                value=f"through the proxy {_without_password(server.proxy)}",
                fix="Nothing, if that is your proxy; else put the server's name into no_proxy.",
            )
        )
        if ":" in server.host:
            # Flower's HTTP client asks a proxy for such an address without its brackets.
            rule, value = "a DNS name, or an IPv4 address, behind a proxy", "an IPv6 address"
            fix = "Ask the coordinator for a name that the server's certificate has."
            return [*findings, _finding("error", server, rule=rule, value=value, fix=fix)]
    try:
        _connected(server).close()
    except _FAULTS as error:
        return [*findings, _unreached(server, error)]
    try:
        # One by one: what was found before a connection broke stays found.
        findings.extend(_certificate_findings(server, ca=ca))
        findings.append(_clock_finding(server))
    except _FAULTS as error:
        findings.append(
            _finding(
                "error",
                server,
                rule=f"an answer over TLS within {server.timeout_seconds:g} s",
                value=str(error),
                fix="Ask the coordinator whether this is the server's port and whether it runs.",
            )
        )
    return findings


def _finding(
    severity: Severity, server: Server | str, *, rule: str, value: str, fix: str
) -> Finding:
    return Finding(
        severity=severity, patient="", name=str(server), rule=rule, value=value, fix=fix, names=True
    )


def _server(address: str, *, proxies: dict[str, str], timeout_seconds: float) -> Server:
    host, port = _endpoint(urlsplit(f"//{address}"))
    url = "" if proxy_bypass(host) else proxies.get("https", proxies.get("all", ""))
    proxy = urlsplit(url if "://" in url else f"http://{url}") if url else None
    if proxy is not None:
        _endpoint(proxy)
    return Server(host=host, port=port, proxy=proxy, timeout_seconds=timeout_seconds)


def _endpoint(parts: SplitResult) -> tuple[str, int]:
    if not parts.hostname or not parts.port:
        raise ValueError(f"{_without_password(parts)!r}")
    return parts.hostname, parts.port


def _without_password(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _loopback_findings(proxies: dict[str, str]) -> Iterator[Finding]:
    """Flower's processes at a site talk to each other over loopback, which no proxy can reach."""
    named = [f"{name}_proxy" for name in ("http", "https", "all") if name in proxies]
    caught = [name for name in _LOOPBACK if not proxy_bypass(name)]
    if named and caught:
        yield Finding(
            severity="error",
            patient="",
            name="no_proxy",
            rule=f"{' and '.join(_LOOPBACK)} in no_proxy where {', '.join(named)} is set",
            value=f"no {' and no '.join(caught)}",
            fix=f"Set no_proxy={','.join(_LOOPBACK)} in the environment of the site's service.",
        )


def _connected(server: Server) -> HTTPConnection:
    """A connection without TLS yet: direct, or a tunnel through the proxy."""
    if server.proxy is None:
        connection = HTTPConnection(server.host, server.port, timeout=server.timeout_seconds)
    else:
        host, port = _endpoint(server.proxy)
        connection = HTTPConnection(host, port, timeout=server.timeout_seconds)
        connection.set_tunnel(server.host, server.port, headers=_credentials(server.proxy))
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    text = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def _unreached(server: Server, error: Exception) -> Finding:
    """Which part of the way is missing; the name of a literal address is never looked up."""
    first = server.proxy.hostname if server.proxy is not None else server.host
    rule, value = "a server that takes connections", str(error)
    fix = f"Ask your network for an outbound connection to {server}, the only one that is needed."
    if isinstance(error, socket.gaierror):
        rule, value = f"an address of {first} (DNS)", error.strerror or value
        fix = "Correct the name, or let your network resolve it; a literal address needs no DNS."
    elif isinstance(error, ConnectionRefusedError):
        value = "a refused connection"
        fix = f"Check the port, ask whether the server runs, and open {server} in the firewall."
    elif isinstance(error, TimeoutError):
        value = f"no answer within {server.timeout_seconds:g} s"
    return _finding("error", server, rule=rule, value=value, fix=fix)


@contextmanager
def _tls(server: Server, context: ssl.SSLContext) -> Iterator[tuple[HTTPConnection, ssl.SSLSocket]]:
    connection = _connected(server)
    try:
        secured = context.wrap_socket(connection.sock, server_hostname=server.host)
        connection.sock = secured
        yield connection, secured
    finally:
        connection.close()


def _refusal(server: Server, context: ssl.SSLContext) -> ssl.SSLCertVerificationError | None:
    try:
        with _tls(server, context):
            return None
    except ssl.SSLCertVerificationError as error:
        return error


def _believing_everything() -> ssl.SSLContext:
    """To look at a certificate or a clock; nothing is sent, and nothing that comes is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _certificate_findings(server: Server, *, ca: Path | None) -> Iterator[Finding]:
    certificate = _certificate(server)
    yield from _date_findings(server, certificate)
    named = _is_named(server, certificate)
    if not named:
        yield _finding(
            "error",
            server,
            rule=f"a certificate for {server.host}",
            value=f"one for {', '.join(_names(certificate)) or 'no name'}",
            fix="Use a name that the certificate has, or ask the coordinator for one with yours.",
        )
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        rule = "a file with the authority's certificate in PEM"
        fix = "Ask the coordinator for the file; the option --ca takes its path."
        yield _finding("error", str(ca), rule=rule, value=str(error), fix=fix)
        return
    context.check_hostname = False
    context.verify_flags |= _ANY_TIME
    refusal = _refusal(server, context)
    if refusal is None and named and _is_valid_now(certificate):
        # Whatever else could stop Flower, such as an authority that has expired.
        refusal = _refusal(server, ssl.create_default_context(cafile=ca))
    if refusal is not None:
        yield _finding(
            "error",
            server,
            rule=f"a certificate signed by {ca or 'an authority that this machine trusts'}",
            value=refusal.verify_message,
            fix="Get the coordinator's ca.crt and name it with --ca. If a device in your network "
            "opens TLS, ask for an exception for this server.",
        )


def _certificate(server: Server) -> x509.Certificate:
    with _tls(server, _believing_everything()) as (_, secured):
        shown = secured.getpeercert(binary_form=True)
    if shown is None:
        raise ssl.SSLError("Expected a server that shows a certificate, found none.")
    return x509.load_der_x509_certificate(shown)


def _is_valid_now(certificate: x509.Certificate) -> bool:
    now = datetime.now(UTC)
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _date_findings(server: Server, certificate: x509.Certificate) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    valid = _is_valid_now(certificate)
    if not valid or end - datetime.now(UTC) < EXPIRES_SOON:
        yield _finding(
            "warning" if valid else "error",
            server,
            rule=f"a certificate that is valid now and for {EXPIRES_SOON.days} days",
            value=f"one from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
            fix="Set this machine's clock if it is wrong; else the coordinator needs a new one.",
        )


def _is_named(server: Server, certificate: x509.Certificate) -> bool:
    """Whether OpenSSL finds the name, with everything else about the certificate believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate.public_bytes(Encoding.DER))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _ANY_TIME
    refusal = _refusal(server, context)
    return refusal is None or refusal.verify_code not in _NAME_MISMATCH


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return [*extension.value.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _clock_finding(server: Server) -> Finding:
    """The server's clock against this machine's.

    Asked for even where the certificate is wrong: a wrong clock makes a good one look expired.
    """
    with _tls(server, _believing_everything()) as (connection, _):
        before = time.time()
        connection.request("GET", "/health")
        try:
            stated = connection.getresponse().getheader("Date", "")
        except HTTPException:
            stated = ""
        after = time.time()
    try:
        date = parsedate_to_datetime(stated).timestamp()
    except ValueError:
        rule, value = "the server's time in the header Date of /health", f"{stated[:40]!r}"
        fix = "Ask the coordinator whether this is the server; compare the two clocks by hand."
        return _finding("warning", server, rule=rule, value=value, fix=fix)
    least, most = date - after, date + _DATE_SECONDS - before
    off = least > CLOCK_SECONDS or most < -CLOCK_SECONDS
    return _finding(
        "error" if off else "note",
        server,
        rule=f"clocks within {CLOCK_SECONDS:g} s (the header Date is good to {_DATE_SECONDS:g} s)",
        value=f"the server's ahead of this machine's by {least:.1f} to {most:.1f} s",
        fix="Synchronise this machine's clock (NTP); else the coordinator the server's."
        if off
        else "Nothing.",
    )
