"""`SecureNormal`: the only source of DP noise and of patient draws.

A cryptographic stream (AES-256 in counter mode) keyed by the operating system, so that no global
seed of torch, numpy or MONAI can repeat it and nobody who sees some of it can predict the rest.
The key is never stored, shown, copied or pickled, and a forked child is refused: two holders of one
stream would add the same noise twice, which an observer can subtract.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from typing import NoReturn, Self

import mpmath
import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medfl.errors import PrivacyError
from medfl.privacy.mechanism import NoiseOrigin

Float64Array = npt.NDArray[np.float64]
Uint64Array = npt.NDArray[np.uint64]

MAX_STD = 2.0**21
"""Largest standard deviation of `SecureNormal.rounded_normal`, in units of its integers."""

_KEY_BYTES = 32
_NONCE = bytes(16)  # the key is used for one stream only, so the counter may start at zero
_WORD_BITS = 53  # of a uniform value: float64 holds them exactly
_CHUNK = 1 << 11  # Box-Muller pairs at a time: the working set stays in the cache

# Where float64 may not know which integer is nearest, see `SecureNormal.rounded_normal`.
_DOUBTFUL_SLOPE = 2.0**-16
_DOUBTFUL_DISTANCE = 2.0**-14
_MORE_BITS = 128
_EXACT = mpmath.MPContext()
_EXACT.prec = 256


class SecureNormal:
    """Independent normal and uniform values from a cryptographic stream.

    Use `from_operating_system`, or `seeded` for simulation and tests.
    """

    __slots__ = ("_origin", "_process", "_stream")

    def __init__(self, key: bytes, *, origin: NoiseOrigin) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"Expected a key of {_KEY_BYTES} bytes, found {len(key)}.")
        self._origin: NoiseOrigin = origin
        self._process = os.getpid()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(_NONCE)).encryptor()

    @classmethod
    def from_operating_system(cls) -> Self:
        """A stream under a fresh key that nobody knows."""
        return cls(os.urandom(_KEY_BYTES), origin="operating-system")

    @classmethod
    def seeded(cls, *parts: str | int) -> Self:
        """A reproducible stream for simulation and tests; it protects nobody.

        Args:
            parts: What names the stream, for example seed, site, round and purpose; different
                parts give independent streams.
        """
        label = json.dumps(["medfl seeded stream", *parts]).encode()
        return cls(hashlib.sha256(label).digest(), origin="seeded")

    @property
    def origin(self) -> NoiseOrigin:
        """Where the key came from; has to equal the mechanism's `noise_origin`."""
        return self._origin

    def rounded_normal(self, shape: Sequence[int], *, std: float) -> torch.Tensor:
        """Independent draws of N(0, std^2), each rounded to the nearest integer.

        Floating-point noise has a grid of its own, which betrays what it was added to (Mironov,
        CCS 2012; Jin et al., arXiv 2112.05307). Integers have none, and these are exact, by the
        idea of refining an interval until it decides (Haney et al., arXiv 2207.13793):

        A pair of normal values is r cos(2 pi u), r sin(2 pi u) with r = sqrt(-2 ln v) and uniform
        u, v in (0, 1] (Box and Muller 1958), where u and v are real numbers of endlessly many
        random bits. Their first 53 bits decide nearly every value. Knowing v to 2^-53 only
        leaves r uncertain by 2^-53 / (v r), which is 2^-37 where v r >= 2^-16; u and the
        arithmetic of float64 add less than 2^-45. Times std <= 2^21 that is less than 2^-15 of a
        unit. A value that lies further than 2^-14 from the middle between two integers, in a pair
        with v r >= 2^-16, is therefore rounded as the real number would be. All others, one in
        8,000, are computed again with 128 further random bits and 256 bits of precision, which
        leave a doubt of less than 2^-100 a value. So the integers follow the law of a rounded
        normal variable up to a total variation of 2^-100 each, whatever the machine's libm.

        Args:
            shape: Shape of the result.
            std: Standard deviation in units of the integers, from 0 to `MAX_STD`.

        Returns:
            A new int64 tensor on the CPU.

        Raises:
            ValueError: If `std` is out of range.
            PrivacyError: If this process is a fork of the one that made the stream.
        """
        if not 0 <= std <= MAX_STD:
            raise ValueError(f"Expected a finite std in [0, {MAX_STD:g}], found {std!r}.")
        count = math.prod(shape)
        values = np.empty((count + 1) // 2 * 2, dtype=np.int64)
        for start in range(0, len(values), 2 * _CHUNK):
            part = values[start : start + 2 * _CHUNK]
            part[:] = self._rounded_pairs(len(part) // 2, std=std).ravel()
        return torch.from_numpy(values[:count]).reshape(tuple(shape))

    def uniform(self, count: int) -> Float64Array:
        """`count` independent values in [0, 1), each a multiple of 2^-53.

        Raises:
            PrivacyError: If this process is a fork of the one that made the stream.
        """
        uniform: Float64Array = self._words(count).astype(np.float64)
        uniform *= 2.0**-_WORD_BITS
        return uniform

    def _words(self, count: int) -> Uint64Array:
        """Independent uniform integers below 2^53."""
        words = np.frombuffer(self._bytes(8 * count), dtype="<u8")
        return words >> np.uint64(64 - _WORD_BITS)

    def _bytes(self, count: int) -> bytes:
        if os.getpid() != self._process:
            raise PrivacyError(
                "Expected the process that made this noise stream, found a fork of it; a fork would"
                " repeat the same noise. Make a new stream in the child process."
            )
        return self._stream.update(bytes(count))

    def _rounded_pairs(self, pairs: int, *, std: float) -> npt.NDArray[np.int64]:
        """Shape (2, pairs)."""
        v_words, u_words = self._words(2 * pairs).reshape(2, pairs)
        v = (v_words + np.uint64(1)).astype(np.float64)
        v *= 2.0**-_WORD_BITS
        radius = np.log(v)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        # torch's float64 sine and cosine are vectorised, three times as fast as numpy's.
        angle = torch.from_numpy(u_words.astype(np.float64))
        angle *= 2.0 * math.pi * 2.0**-_WORD_BITS
        values: Float64Array = torch.stack([angle.cos(), angle.sin()]).numpy()
        values *= radius
        values *= std
        nearest = np.rint(values)
        doubtful = (np.abs(values - nearest) > 0.5 - _DOUBTFUL_DISTANCE).any(axis=0)
        doubtful |= v * radius < _DOUBTFUL_SLOPE
        rounded = nearest.astype(np.int64)
        for pair in np.flatnonzero(doubtful):
            rounded[:, pair] = self._exact_pair(int(v_words[pair]), int(u_words[pair]), std=std)
        return rounded

    def _exact_pair(self, v_word: int, u_word: int, *, std: float) -> list[int]:
        """A pair whose uniform values begin with these 53 bits."""
        more = self._bytes(2 * _MORE_BITS // 8)
        half = _MORE_BITS // 8
        v_bits = (v_word << _MORE_BITS) + int.from_bytes(more[:half], "little")
        u_bits = (u_word << _MORE_BITS) + int.from_bytes(more[half:], "little")
        bits = _WORD_BITS + _MORE_BITS
        radius = std * _EXACT.sqrt(-2 * _EXACT.log(_EXACT.ldexp(v_bits + 1, -bits)))
        angle = 2 * _EXACT.pi * _EXACT.ldexp(u_bits, -bits)
        return [
            int(_EXACT.nint(radius * turned)) for turned in (_EXACT.cos(angle), _EXACT.sin(angle))
        ]

    def __repr__(self) -> str:
        return f"SecureNormal(origin={self._origin!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(
            "Expected a noise stream to stay in its process, found an attempt to pickle or copy it;"
            " a copy would repeat the same noise."
        )
