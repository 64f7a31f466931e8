"""`AdmittedSite`: the public keys that a coordinator accepts for one hospital."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from medfl.errors import ConfigError
from medfl.federation.site_keys import read_public


@dataclass(frozen=True, kw_only=True)
class AdmittedSite:
    """The keys of one hospital.

    Attributes:
        node_key: Public key with which its node joins, as OpenSSH text without a comment.
        event_key: Public key that signs what its ledger was charged for, as hexadecimal text.
    """

    node_key: str
    event_key: str

    @property
    def node_key_pem(self) -> bytes:
        """The node key as Flower stores it."""
        key = serialization.load_ssh_public_key(self.node_key.encode())
        return key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def read_bundle(path: Path) -> AdmittedSite:
    """The keys in a `site.pub`.

    Raises:
        ConfigError: If the file is missing or something else.
    """
    event_key = read_public(path).lower()
    try:
        node = json.loads(path.read_text(encoding="utf-8"))["node"]
        key = serialization.load_ssh_public_key(node.encode())
    except (AttributeError, KeyError, TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: expected a site.pub, found one without a usable node key.")
    # Written anew: the same key under another comment is still the same key.
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return AdmittedSite(node_key=text.decode(), event_key=event_key)
