"""What ties bytes to one purpose in one round: an unambiguous encoding and digests.

Every digest, key and signature of the protocol is made over such an encoding, which begins with its
own purpose. So nothing that was made for one step, round or pair of sites can pass for another's.
"""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 32
SIGNATURE_BYTES = 64

_DOMAIN = "medfl secure sum: "


def encode(purpose: str, *fields: str | int | bytes) -> bytes:
    """Fields as bytes that no other purpose, number, type or division of fields would give.

    Args:
        purpose: What the bytes are for.
        fields: What is bound; a list goes in as its own encoding.
    """
    parts = []
    for field in (_DOMAIN + purpose, *fields):
        if isinstance(field, str):
            kind, content = b"s", field.encode()
        elif isinstance(field, int):
            kind, content = b"i", str(field).encode()
        else:
            kind, content = b"b", field
        parts.append(kind + len(content).to_bytes(8, "big") + content)
    return b"".join(parts)


def digest(purpose: str, *fields: str | int | bytes) -> str:
    """SHA-256 of `encode`, as hexadecimal text."""
    return hashlib.sha256(encode(purpose, *fields)).hexdigest()
