"""The coordinator's own certificate authority, and the server certificate that it signs.

Hospitals trust this authority and no other for the connection, so that nobody who controls a public
one can get in between. The server's certificate is renewed under the same authority, so that
hospitals notice nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfl.durable import write_atomically
from medfl.errors import ConfigError
from medfl.secret_files import require_owner_only

AUTHORITY_DAYS = 3650
SERVER_DAYS = 730

EXPIRES_SOON = timedelta(days=30)
"""How long before its end a certificate is warned about."""

# Clocks of hospitals may be a little behind.
_SLACK = timedelta(hours=1)
_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a server shows.

    Attributes:
        end: Until when it is valid.
        fits_key: Whether the key beside it is its own.
    """

    end: datetime
    fits_key: bool

    @property
    def left(self) -> timedelta:
        """How long it is still valid; negative after its end."""
        return self.end - datetime.now(UTC)

    @property
    def days_left(self) -> int:
        """Whole days that are left."""
        return self.left // timedelta(days=1)

    @property
    def expires_soon(self) -> bool:
        """Whether somebody should renew it."""
        return self.left < EXPIRES_SOON


def read_certificate(path: Path, *, key: Path) -> Certificate:
    """Read a server's certificate.

    Args:
        path: The certificate.
        key: Its key.

    Raises:
        ConfigError: If one of them is missing or damaged, or others can read the key.
    """
    certificate, private = _read_pair(path, key=key)
    fits = certificate.public_key() == private.public_key()
    return Certificate(end=certificate.not_valid_after_utc, fits_key=fits)


def write_certificates(
    *, host: str, authority: Path, server: Path, authority_key: Path, server_key: Path
) -> None:
    """Make an authority and a server certificate (P-256); keys are written with mode 0600.

    Args:
        host: DNS name or IP address under which hospitals reach the server.
        authority: Where the authority's certificate goes; hospitals get it.
        server: Where the server's certificate goes.
        authority_key: Where the authority's key goes.
        server_key: Where the server's key goes.

    Raises:
        ConfigError: If `host` is neither a DNS name nor an IP address.
    """
    names = _general_names(host)
    root = ec.generate_private_key(ec.SECP256R1())
    root_certificate = _authority(root)
    write_atomically(authority_key, _pem(root), mode=0o600)
    write_atomically(authority, root_certificate.public_bytes(serialization.Encoding.PEM))
    _write_server(
        names=names, root=root, issuer=root_certificate, server=server, server_key=server_key
    )


def renew_certificate(
    *, host: str, authority: Path, server: Path, authority_key: Path, server_key: Path
) -> Certificate:
    """Make a new key and certificate for the server; the old ones stay beside them as ``.old``.

    A crash on the way may leave a new key beside the old certificate; renewing again mends it.

    Args:
        host: DNS name or IP address under which hospitals reach the server.
        authority: The authority's certificate.
        server: The server's certificate, which is replaced.
        authority_key: The authority's key.
        server_key: The server's key, which is replaced.

    Raises:
        ConfigError: If the authority is missing, damaged or at its end.
    """
    issuer, root = _read_pair(authority, key=authority_key)
    if issuer.not_valid_after_utc - datetime.now(UTC) < EXPIRES_SOON:
        raise ConfigError(
            f"{authority}: expected an authority that is valid for {EXPIRES_SOON.days} days, found "
            f"one that ends on {issuer.not_valid_after_utc:%Y-%m-%d}: make a new server with "
            "`medfl server init`, and invite the hospitals again."
        )
    for path, mode in ((server_key, 0o600), (server, 0o666)):
        if path.exists():
            write_atomically(path.with_name(f"{path.name}.old"), path.read_bytes(), mode=mode)
    _write_server(
        names=_general_names(host), root=root, issuer=issuer, server=server, server_key=server_key
    )
    return read_certificate(server, key=server_key)


def _write_server(
    *,
    names: list[x509.GeneralName],
    root: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    server: Path,
    server_key: Path,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _server(key, names=names, root=root, issuer=issuer)
    write_atomically(server_key, _pem(key), mode=0o600)
    write_atomically(server, certificate.public_bytes(serialization.Encoding.PEM))


def _read_pair(path: Path, *, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    require_owner_only(key)
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: expected a certificate and its key, found a damaged file.")
    return certificate, private


def _general_names(host: str) -> list[x509.GeneralName]:
    return [_general_name(name) for name in dict.fromkeys((host, *_HERE))]


def _general_name(host: str) -> x509.GeneralName:
    try:
        if "%" not in host:  # the address of one machine's own link is nothing to certify
            return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        labels = host.encode("ascii").decode().split(".")
    except UnicodeEncodeError:
        labels = [""]
    if not all(label and label.replace("-", "").isalnum() for label in labels):
        raise ConfigError(f"Expected a DNS name or an IP address as host, found {host!r}.")
    return x509.DNSName(host)


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medfl federation")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(key, subject=name, issuer=name, end=_in_days(AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    *,
    names: list[x509.GeneralName],
    root: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medfl server")])
    # Nothing is valid for longer than who vouches for it.
    end = min(_in_days(SERVER_DAYS), issuer.not_valid_after_utc)
    return (
        _builder(key, subject=subject, issuer=issuer.subject, end=end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False
        )
        .sign(root, hashes.SHA256())
    )


def _builder(
    key: ec.EllipticCurvePrivateKey, *, subject: x509.Name, issuer: x509.Name, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _SLACK)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _in_days(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
