"""The coordinator's own certificate authority, and the server certificate that it signs.

Hospitals trust this authority and no other for the connection, so that nobody who controls a public
one can stand in the middle.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfl.durable import write_atomically
from medfl.errors import ConfigError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 730

# Clocks of hospitals may be a little behind.
_SLACK = timedelta(hours=1)
_HERE = ("localhost", "127.0.0.1", "::1")


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
    names = [_general_name(name) for name in dict.fromkeys((host, *_HERE))]
    root = ec.generate_private_key(ec.SECP256R1())
    root_certificate = _authority(root)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _server(key, names=names, root=root, issuer=root_certificate)
    write_atomically(authority_key, _pem(root), mode=0o600)
    write_atomically(server_key, _pem(key), mode=0o600)
    write_atomically(authority, root_certificate.public_bytes(serialization.Encoding.PEM))
    write_atomically(server, certificate.public_bytes(serialization.Encoding.PEM))


def _general_name(host: str) -> x509.GeneralName:
    try:
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
        _builder(key, subject=name, issuer=name, days=AUTHORITY_DAYS)
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
    return (
        _builder(key, subject=subject, issuer=issuer.subject, days=SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False
        )
        .sign(root, hashes.SHA256())
    )


def _builder(
    key: ec.EllipticCurvePrivateKey, *, subject: x509.Name, issuer: x509.Name, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
