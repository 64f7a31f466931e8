"""Keys that two sites share although all their messages pass through the server: X25519 and HKDF.

Keys are raw bytes here, because a site's state has to survive its process.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32


def new_private_key() -> bytes:
    """A fresh X25519 key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_half(private: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_usable(public: bytes) -> bool:
    """Whether a public key is one that a secret can be agreed on with.

    With a few points of low order every secret would be zero, for everybody to know.
    """
    # Such a point gives zero with every private key, so any will do.
    own = X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES))
    try:
        own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def agreed_key(private: bytes, public: bytes, *, purpose: bytes) -> bytes:
    """A key that only the holders of these two key pairs can compute.

    Args:
        private: One side's X25519 key.
        public: The other side's.
        purpose: What the key is for, from `medfl.secure_sum.binding.encode`.

    Raises:
        ValueError: If the public key is no usable one.
    """
    own = X25519PrivateKey.from_private_bytes(private)
    return derived_key(own.exchange(X25519PublicKey.from_public_bytes(public)), purpose=purpose)


def derived_key(secret: bytes, *, purpose: bytes) -> bytes:
    """A key for one purpose from a secret (HKDF-SHA256)."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=purpose).derive(secret)
