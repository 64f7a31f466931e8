"""Ed25519 signatures of sites, as everybody checks them."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def is_signed(content: bytes, *, signature: str, event_key: str) -> bool:
    """Whether the holder of an event key signed these bytes.

    Args:
        content: What was signed.
        signature: Hexadecimal text.
        event_key: Public key, hexadecimal text.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(event_key))
        key.verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True
