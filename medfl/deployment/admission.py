"""`AdmittedSite`: the public keys of a hospital that a coordinator accepts, from a `site.pub`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from medfl.deployment.fingerprint import fingerprint
from medfl.errors import ConfigError
from medfl.protocol.keys import Rotation, is_vouched_for, read_public


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

    @property
    def fingerprint(self) -> str:
        """Of both keys, to be compared by telephone."""
        return fingerprint(f"{self.event_key}\n{self.node_key}".encode())


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a `site.pub` says.

    Attributes:
        site: The keys; the holder of the event key has signed the node key.
        rotations: How the event key followed from earlier ones.
        invitation: Code of the invitation that it answers; empty where it names none.
    """

    site: AdmittedSite
    rotations: tuple[Rotation, ...]
    invitation: str


def read_bundle(path: Path) -> Bundle:
    """Read a `site.pub`.

    Raises:
        ConfigError: If the file is missing or something else, or if its event key does not vouch
            for its node key.
    """
    event_key = read_public(path).lower()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        key = serialization.load_ssh_public_key(content["node"].encode())
        signature = str(content["node_signature"])
        rotations = tuple(_rotation(values) for values in content["rotations"])
        invitation = str(content.get("invitation", ""))
    except (AttributeError, KeyError, TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: expected a site.pub, found one without a usable node key.")
    # Written anew: the same key under another comment is still the same key.
    node_key = key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()
    if not is_vouched_for(node_key, signature=signature, event_key=event_key):
        raise ConfigError(
            f"{path}: expected a node key that the event key has signed, found another "
            "one. Ask the hospital to send its site.pub again, by another route."
        )
    site = AdmittedSite(node_key=node_key, event_key=event_key)
    return Bundle(site=site, rotations=rotations, invitation=invitation)


def _rotation(values: dict[str, str]) -> Rotation:
    rotation = Rotation(**values)
    if not all(isinstance(part, str) for part in (rotation.old, rotation.new, rotation.signature)):
        raise TypeError("Expected a rotation of texts.")
    return rotation
