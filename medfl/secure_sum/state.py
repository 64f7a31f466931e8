"""What a site keeps between two phases of a round, as bytes that survive its process.

It holds secrets: it must be stored in a file that only its owner can read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, Self

from medfl.errors import PrivacyError, SecureSumError, SecureSumRefused
from medfl.secure_sum.messages import Advert
from medfl.secure_sum.terms import RoundTerms
from medfl.secure_sum.wire import plain

_MAGIC = b"medfl secure sum state 1\n"
_HASH_BYTES = 32


class Phase(StrEnum):
    """How far a site has come in a round; the phases follow each other in this order."""

    FRESH = "fresh"
    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    SPENT = "spent"


class Secret(StrEnum):
    """The two secrets of a peer, of which a site may reveal its share of one."""

    SEED = "seed"
    KEY = "key"


@dataclass(kw_only=True, repr=False)
class SiteState:
    """One site in one round.

    Attributes:
        terms: Of the round.
        site: The site's name.
        phase: The last one that is done.
        mask_key: Private key of the masks shared with peers; empty once the vector is masked.
        sealing_key: Private key of the shares sealed for the site; empty likewise.
        seed: Of the self mask; empty likewise.
        adverts: Of all sites that shares are dealt among: first the own one only.
        dealing: Digest of the site's own dealing.
        dealers: Sites with whom it shares masks.
        dealings: Digest of all their dealings.
        seed_shares: Shares held of the dealers' seeds.
        key_shares: Shares held of the dealers' mask keys.
        survivors: The set that it has confirmed.
        revealed: Of which secret a share was given away, by dealer.
    """

    terms: RoundTerms
    site: str
    phase: Phase = Phase.FRESH
    mask_key: bytes = b""
    sealing_key: bytes = b""
    seed: bytes = b""
    adverts: tuple[Advert, ...] = ()
    dealing: str = ""
    dealers: tuple[str, ...] = ()
    dealings: str = ""
    seed_shares: dict[str, bytes] = field(default_factory=dict)
    key_shares: dict[str, bytes] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    revealed: dict[str, Secret] = field(default_factory=dict)

    def forget_own_secrets(self) -> None:
        """Drop what masked the vector: from now on no second one can be."""
        self.mask_key = self.sealing_key = self.seed = b""
        self.adverts = ()

    def to_bytes(self) -> bytes:
        """The state as bytes, with a hash that tells a damaged one."""
        content = {
            **{name: plain(value) for name, value in vars(self).items()},
            "terms": self.terms.to_dict(),
            "adverts": [advert.to_dict() for advert in self.adverts],
        }
        body = json.dumps(content).encode()
        return _MAGIC + hashlib.sha256(_MAGIC + body).digest() + body

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read `to_bytes`.

        Raises:
            SecureSumRefused: If it is damaged (secure-sum-state).
        """
        start = len(_MAGIC) + _HASH_BYTES
        found, body = content[len(_MAGIC) : start], content[start:]
        if content[: len(_MAGIC)] != _MAGIC or hashlib.sha256(_MAGIC + body).digest() != found:
            raise _damaged()
        try:
            return cls(**_fields(json.loads(body)))
        except (AttributeError, KeyError, TypeError, ValueError, SecureSumError):
            raise _damaged() from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(site={self.site!r}, phase={self.phase.value!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(
            "Expected a site's state to be stored by its own bytes, found an attempt to pickle or "
            "copy it; two copies could answer twice."
        )


def _damaged() -> SecureSumRefused:
    return SecureSumRefused(
        "Expected the state of a round as it was stored, found another or a damaged one.",
        code="secure-sum-state",
    )


def _fields(content: Mapping[str, Any]) -> dict[str, Any]:
    secrets = {name: bytes.fromhex(content[name]) for name in ("mask_key", "sealing_key", "seed")}
    shares = {
        name: {dealer: bytes.fromhex(share) for dealer, share in content[name].items()}
        for name in ("seed_shares", "key_shares")
    }
    return {
        **content,
        **secrets,
        **shares,
        "terms": RoundTerms.from_dict(content["terms"]),
        "phase": Phase(content["phase"]),
        "adverts": tuple(Advert.from_dict(advert) for advert in content["adverts"]),
        "dealers": tuple(content["dealers"]),
        "survivors": tuple(content["survivors"]),
        "revealed": {dealer: Secret(kind) for dealer, kind in content["revealed"].items()},
    }
