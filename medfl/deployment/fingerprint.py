"""A few letters and digits that identify a key or a certificate, to be compared by telephone."""

from __future__ import annotations

import base64
import hashlib

# 80 bits: short enough to be said, and nobody finds something else with the same letters.
_BYTES = 10
_GROUP = 4


def fingerprint(content: bytes) -> str:
    """The beginning of a SHA-256, as four groups of four letters and digits.

    Args:
        content: What is compared.
    """
    text = base64.b32encode(hashlib.sha256(content).digest()[:_BYTES]).decode()
    return "-".join(text[start : start + _GROUP] for start in range(0, len(text), _GROUP))
