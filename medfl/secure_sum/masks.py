"""Integer vectors modulo 2^b and the keystreams that hide them.

Residues are kept in words of 4 bytes (b = 32) or 8 bytes, which wrap around by themselves; as 2^b
divides the word's range, the low b bits stay right. On the wire an integer takes b / 8 bytes,
little-endian. All sums are made in place and in blocks, so that no vector is copied on the way.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medfl.secure_sum.agreement import agreed_key, derived_key
from medfl.secure_sum.binding import encode

Int64Array = npt.NDArray[np.int64]
Words = npt.NDArray[np.unsignedinteger[Any]]

_BLOCK = 1 << 15  # words at a time: the working set stays in the cache
_COUNTER = bytes(16)  # a key is used for one stream only, so the counter may start at zero


def zero_words(length: int, *, bits: int) -> Words:
    """The residues of a vector of zeros, shape (length,)."""
    return np.zeros(length, dtype=_word(bits))


def to_words(vector: Int64Array, *, bits: int) -> Words:
    """A copy of integers as residues, shape (d,)."""
    return vector.astype(_word(bits))


def to_integers(words: Words, *, bits: int) -> Int64Array:
    """Residues as the integers in [-2^(b-1), 2^(b-1)), shape (d,); `words` may be overwritten."""
    if bits == 32:
        return words.view("<i4").astype(np.int64)
    spare = 64 - bits
    words <<= np.uint64(spare)
    centred: Int64Array = words.view("<i8")
    centred >>= np.int64(spare)  # an arithmetic shift: the sign fills the spare bits
    return centred


def pack(words: Words, *, bits: int) -> bytes:
    """The low b bits of every word, b / 8 bytes an integer."""
    return _as_bytes(words)[:, : bits // 8].tobytes()


def add_packed(words: Words, packed: bytes, *, bits: int) -> None:
    """Add a packed vector to residues of the same length, in place."""
    size = bits // 8
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(-1, size)
    block = np.zeros((min(_BLOCK, len(words)), words.itemsize), dtype=np.uint8)
    for start in range(0, len(words), _BLOCK):
        part = words[start : start + _BLOCK]
        block[: len(part), :size] = rows[start : start + _BLOCK]
        part += block[: len(part)].view(words.dtype)[:, 0]


def add_stream(words: Words, key: bytes, *, sign: Literal[1, -1]) -> None:
    """Add or subtract the keystream of AES-256-CTR, one word an integer, in place."""
    stream = Cipher(algorithms.AES(key), modes.CTR(_COUNTER)).encryptor()
    count = min(_BLOCK, len(words))
    zeros = bytes(count * words.itemsize)
    block = np.empty(count, dtype=words.dtype)
    for start in range(0, len(words), _BLOCK):
        part = words[start : start + _BLOCK]
        used = block[: len(part)]
        stream.update_into(memoryview(zeros)[: used.nbytes], _as_bytes(used).reshape(-1).data)
        if sign > 0:
            part += used
        else:
            part -= used


def self_mask_key(seed: bytes, *, dealers: str, site: str) -> bytes:
    """Key of the mask that hides a site's vector until it is known to have arrived.

    Args:
        seed: The site's self-mask seed.
        dealers: Digest of the dealt shares, and so of terms, adverts and dealers.
        site: Whose mask it is.
    """
    return derived_key(seed, purpose=encode("self mask", dealers, site))


def add_pair_mask(
    words: Words, *, site: str, peer: str, private: bytes, public: bytes, dealers: str
) -> None:
    """Add, in place, the mask that `site` shares with `peer`: the peer's has the other sign.

    Args:
        words: Residues.
        site: Whose mask is added.
        peer: The other one.
        private: The mask key of one of the two.
        public: The mask key of the other one.
        dealers: As for `self_mask_key`.
    """
    lower, upper = sorted((site, peer))
    key = agreed_key(private, public, purpose=encode("pair mask", dealers, lower, upper))
    add_stream(words, key, sign=1 if site == lower else -1)


def remove_pair_mask(
    words: Words, *, site: str, peer: str, private: bytes, public: bytes, dealers: str
) -> None:
    """Subtract, in place, what `add_pair_mask` adds for the same arguments."""
    add_pair_mask(words, site=peer, peer=site, private=private, public=public, dealers=dealers)


def _word(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    return np.dtype("<u4" if bits == 32 else "<u8")


def _as_bytes(words: Words) -> npt.NDArray[np.uint8]:
    """The same memory as bytes, shape (d, bytes of a word)."""
    return words.view(np.uint8).reshape(len(words), words.itemsize)
