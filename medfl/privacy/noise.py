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

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medfl.errors import PrivacyError
from medfl.privacy.mechanism import NoiseOrigin

Float64Array = npt.NDArray[np.float64]

_KEY_BYTES = 32
_NONCE = bytes(16)  # the key is used for one stream only, so the counter may start at zero
_DRAWS = 4  # normal draws per output value
_CHUNK = 1 << 12  # output values at a time: the working set stays in the cache


class SecureNormal:
    """Independent normal and uniform values from a cryptographic stream.

    Normal values come from Box-Muller in float64; each is the sum of four draws divided by two, so
    that the floating-point grid of a value does not betray what it was added to (Holohan and
    Braghin, "Secure Random Sampling in Differential Privacy", arXiv 2107.10138).

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

    def normal(
        self, shape: Sequence[int], *, std: float, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Independent draws of N(0, std^2).

        Args:
            shape: Shape of the result.
            std: Standard deviation, finite and not negative.
            dtype: Floating type of the result; all arithmetic before the cast is in float64.

        Returns:
            A new tensor on the CPU.

        Raises:
            ValueError: If `std` is out of range.
            PrivacyError: If this process is a fork of the one that made the stream.
        """
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"Expected a finite std >= 0, found {std!r}.")
        values = np.empty(math.prod(shape), dtype=np.float64)
        for start in range(0, values.size, _CHUNK):
            part = values[start : start + _CHUNK]
            part[:] = self._standard_normal(part.size)
        values *= std
        return torch.from_numpy(values).reshape(tuple(shape)).to(dtype)

    def uniform(self, count: int) -> Float64Array:
        """`count` independent values in [0, 1), each a multiple of 2^-53.

        Raises:
            PrivacyError: If this process is a fork of the one that made the stream.
        """
        if os.getpid() != self._process:
            raise PrivacyError(
                "Expected the process that made this noise stream, found a fork of it; a fork would"
                " repeat the same noise. Make a new stream in the child process."
            )
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        uniform: Float64Array = (words >> np.uint64(11)).astype(np.float64)
        uniform *= 2.0**-53
        return uniform

    def _standard_normal(self, count: int) -> Float64Array:
        # Two columns at least: the roll below has to bring together four different pairs.
        columns = max(count, 2)
        radius, angle = self.uniform(_DRAWS * columns).reshape(2, _DRAWS // 2, columns)
        # 1 - u lies in (0, 1], so that the logarithm is finite.
        np.subtract(1.0, radius, out=radius)
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= 2.0 * math.pi
        # torch's float64 sine and cosine are vectorised, three times as fast as numpy's.
        turned = torch.from_numpy(angle)
        cosine = turned.cos().numpy()
        turned.sin_()
        cosine *= radius
        angle *= radius
        # Cosine and sine of one pair share their radius: they go to different values.
        total: Float64Array = cosine.sum(axis=0) + np.roll(angle.sum(axis=0), 1)
        total /= math.sqrt(_DRAWS)
        return total[:count]

    def __repr__(self) -> str:
        return f"SecureNormal(origin={self._origin!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(
            "Expected a noise stream to stay in its process, found an attempt to pickle or copy it;"
            " a copy would repeat the same noise."
        )
