"""Shares on their way through the server: only their holder can open them.

The key belongs to one dealer, one holder and one set of adverts, and the same is authenticated
beside the shares, so a sealed pair fits nowhere else.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from medfl.secure_sum.agreement import agreed_key
from medfl.secure_sum.binding import encode
from medfl.secure_sum.shamir import SHARE_BYTES

_NONCE_BYTES = 12
_TAG_BYTES = 16
SEALED_BYTES = _NONCE_BYTES + 2 * SHARE_BYTES + _TAG_BYTES


def purpose_of(*, adverts: str, dealer: str, holder: str) -> bytes:
    """What binds a sealed pair of shares.

    Args:
        adverts: Digest of the adverts that the dealer saw; it includes the terms'.
        dealer: Who made the shares.
        holder: Whom they are for.
    """
    return encode("sealed shares", adverts, dealer, holder)


def seal(shares: tuple[bytes, bytes], *, private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Encrypt the shares of seed and mask key for their holder.

    Args:
        shares: Of the seed and of the mask key, `SHARE_BYTES` each.
        private: The dealer's sealing key.
        public: The holder's.
        purpose: From `purpose_of`.
    """
    # The key is used once, unless a site's state was put back; then the nonce is another.
    nonce = os.urandom(_NONCE_BYTES)
    cipher = ChaCha20Poly1305(agreed_key(private, public, purpose=purpose))
    return nonce + cipher.encrypt(nonce, shares[0] + shares[1], purpose)


def unseal(sealed: bytes, *, private: bytes, public: bytes, purpose: bytes) -> tuple[bytes, bytes]:
    """The shares of seed and mask key.

    Args:
        sealed: From `seal`.
        private: The holder's sealing key.
        public: The dealer's.
        purpose: From `purpose_of`.

    Raises:
        ValueError: If they were sealed for another purpose or pair of sites, or changed.
    """
    cipher = ChaCha20Poly1305(agreed_key(private, public, purpose=purpose))
    try:
        opened = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose)
    except InvalidTag:
        raise ValueError("Expected shares sealed for this site, found others.") from None
    if len(opened) != 2 * SHARE_BYTES:
        raise ValueError(f"Expected {2 * SHARE_BYTES} bytes of shares, found {len(opened)}.")
    return opened[:SHARE_BYTES], opened[SHARE_BYTES:]
