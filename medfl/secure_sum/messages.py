"""What sites and server say to each other in a secure sum; every message of a site is signed.

`to_dict` gives JSON types, with bytes as hexadecimal text; a masked vector travels beside them as
raw bytes. `from_dict` checks types and sizes only; who signed what under which terms is `fault`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Self, TypeVar

from medfl.secure_sum import wire
from medfl.secure_sum.agreement import KEY_BYTES
from medfl.secure_sum.binding import DIGEST_BYTES, digest, encode
from medfl.secure_sum.sealing import SEALED_BYTES
from medfl.secure_sum.shamir import SHARE_BYTES
from medfl.secure_sum.terms import RoundTerms
from medfl.signatures import is_signed

Sign = Callable[[bytes], str]
"""Signs bytes with a site's event key; hexadecimal text."""

SignedType = TypeVar("SignedType", bound="Signed")


@dataclass(frozen=True, kw_only=True, repr=False)
class Signed:
    """A message that its author has signed.

    Attributes:
        site: The author.
        terms: Digest of the terms under which it was made.
        signature: Over everything else, hexadecimal text; empty until it is signed.
    """

    site: str
    terms: str
    signature: str = ""

    @cached_property
    def content(self) -> bytes:
        """What is signed."""
        parts = [
            _encoded(getattr(self, field.name)) for field in fields(self) if field.name not in _BARE
        ]
        return encode(type(self).__name__, self.site, self.terms, *parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is signed, as hexadecimal text."""
        return digest("message", self.content)

    def to_dict(self) -> dict[str, Any]:
        """The message as JSON types."""
        return {name: wire.plain(value) for name, value in asdict(self).items()}

    def __repr__(self) -> str:
        # Some messages hold shares of secrets.
        return f"{type(self).__name__}(site={self.site!r})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Advert(Signed):
    """A site's fresh public keys for one round.

    Attributes:
        mask_key: X25519 key of the masks that it shares with each peer.
        sealing_key: X25519 key of the shares that are sealed for it.
        seed_commitment: SHA-256 over its self-mask seed, see `commitment`.
    """

    mask_key: bytes
    sealing_key: bytes
    seed_commitment: bytes

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """Both public keys."""
        return self.mask_key, self.sealing_key

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read `to_dict`.

        Raises:
            SecureSumError: If it is malformed.
        """
        keys: dict[str, Any] = {
            name: wire.sized_bytes(content, name, KEY_BYTES) for name in ("mask_key", "sealing_key")
        }
        commitment = wire.sized_bytes(content, "seed_commitment", DIGEST_BYTES)
        return cls(**wire.author(content), **keys, seed_commitment=commitment)


@dataclass(frozen=True, kw_only=True, repr=False)
class Dealing(Signed):
    """Hashes of all shares that a site has dealt, so that a wrong share can be told, and by whom.

    Attributes:
        adverts: Digest of the adverts that the dealer saw.
        seed_hashes: Of the share of the self-mask seed, by holder; see `share_hash`.
        key_hashes: Of the share of the mask key.
    """

    adverts: str
    seed_hashes: Mapping[str, bytes]
    key_hashes: Mapping[str, bytes]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read `to_dict`.

        Raises:
            SecureSumError: If it is malformed.
        """
        hashes: dict[str, Any] = {
            name: wire.by_site(content, name, DIGEST_BYTES)
            for name in ("seed_hashes", "key_hashes")
        }
        return cls(**wire.author(content), adverts=wire.digest_text(content, "adverts"), **hashes)


@dataclass(frozen=True, kw_only=True, repr=False)
class SealedShares:
    """Site to server: its dealing, and the shares that only their holders can open.

    Attributes:
        sealed: By holder.
    """

    dealing: Dealing
    sealed: Mapping[str, bytes]

    @property
    def site(self) -> str:
        """The dealer."""
        return self.dealing.site

    def to_dict(self) -> dict[str, Any]:
        """The message as JSON types."""
        return {"dealing": self.dealing.to_dict(), "sealed": wire.plain(self.sealed)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read `to_dict`.

        Raises:
            SecureSumError: If it is malformed.
        """
        dealing = Dealing.from_dict(wire.field(content, "dealing", dict))
        return cls(dealing=dealing, sealed=wire.by_site(content, "sealed", SEALED_BYTES))


@dataclass(frozen=True, kw_only=True, repr=False)
class Delivery:
    """Server to site: a dealer's dealing and the shares that it sealed for this site."""

    dealing: Dealing
    sealed: bytes

    def to_dict(self) -> dict[str, Any]:
        """The message as JSON types."""
        return {"dealing": self.dealing.to_dict(), "sealed": wire.plain(self.sealed)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read `to_dict`.

        Raises:
            SecureSumError: If it is malformed.
        """
        dealing = Dealing.from_dict(wire.field(content, "dealing", dict))
        return cls(dealing=dealing, sealed=wire.sized_bytes(content, "sealed", SEALED_BYTES))


@dataclass(frozen=True, kw_only=True, repr=False)
class MaskedInput(Signed):
    """A site's vector behind its masks.

    Attributes:
        dealers: Digest of the dealings with whose sites it shares masks.
        vector: Packed integers, see `medfl.secure_sum.masks.pack`.
    """

    dealers: str
    vector: bytes

    @cached_property
    def content(self) -> bytes:
        """What is signed: the vector's hash, for the vector is large."""
        hashed = hashlib.sha256(self.vector).digest()
        return encode("MaskedInput", self.site, self.terms, self.dealers, hashed)

    def to_dict(self) -> dict[str, Any]:
        """All but the vector as JSON types."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "vector"
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, vector: bytes) -> Self:
        """Read `to_dict` and the raw bytes beside it.

        Raises:
            SecureSumError: If it is malformed.
        """
        return cls(
            **wire.author(content), dealers=wire.digest_text(content, "dealers"), vector=vector
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Confirmation(Signed):
    """The one set of survivors of a round that a site will help to unmask.

    Attributes:
        dealers: As in `MaskedInput`.
        survivors: Names in ascending order.
    """

    dealers: str
    survivors: tuple[str, ...]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read `to_dict`.

        Raises:
            SecureSumError: If it is malformed.
        """
        survivors = tuple(wire.field(content, "survivors", list))
        wire.expect(all(wire.is_name(name) for name in survivors), "names of sites")
        return cls(
            **wire.author(content),
            dealers=wire.digest_text(content, "dealers"),
            survivors=survivors,
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Unmasking(Signed):
    """Shares that a site reveals: for each peer of one secret, and never of both.

    Attributes:
        dealers: As in `MaskedInput`.
        seeds: Shares of the survivors' self-mask seeds.
        keys: Shares of the mask keys of those who dealt shares and then fell out.
    """

    dealers: str
    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read `to_dict`.

        Raises:
            SecureSumError: If it is malformed.
        """
        shares: dict[str, Any] = {
            name: wire.by_site(content, name, SHARE_BYTES) for name in ("seeds", "keys")
        }
        return cls(**wire.author(content), dealers=wire.digest_text(content, "dealers"), **shares)


def signed(message: SignedType, sign: Sign) -> SignedType:
    """The same message with its author's signature."""
    return replace(message, signature=sign(message.content))


def fault(message: Signed, terms: RoundTerms) -> str:
    """Why a message is none of a site under these terms; empty text if it is one.

    Returns:
        ``secure-sum-roster``, ``secure-sum-terms`` or ``secure-sum-signature``.
    """
    key = terms.roster.key_of(message.site)
    if not key:
        return "secure-sum-roster"
    if not _under(message, terms):
        return "secure-sum-terms"
    if not is_signed(message.content, signature=message.signature, event_key=key):
        return "secure-sum-signature"
    return ""


def commitment(seed: bytes, *, terms: str, site: str) -> bytes:
    """Hash of a self-mask seed; 32 random bytes cannot be guessed from it."""
    return bytes.fromhex(digest("seed", terms, site, seed))


def share_hash(share: bytes, *, adverts: str, dealer: str, holder: str, kind: str) -> bytes:
    """Hash of a share, which tells a right one from a wrong one.

    It says nothing useful about the share: with a threshold of two or more a share alone is a
    uniform element of a field above 2^256, so the hash can only be tried against that many.

    Args:
        share: `SHARE_BYTES` bytes.
        adverts: Digest of the adverts that the dealer saw.
        dealer: Who made the share.
        holder: Whom it is for.
        kind: ``seed`` or ``key``.
    """
    return bytes.fromhex(digest("share", adverts, dealer, holder, kind, share))


def digest_of(kind: str, messages: Iterable[Signed], *, terms: RoundTerms) -> str:
    """Digest of a set of messages, whatever their order: what all sites have to have seen alike.

    Args:
        kind: ``adverts`` or ``dealings``.
        messages: One of a site.
        terms: Of the round.
    """
    ordered = sorted(messages, key=lambda message: message.site)
    return digest(kind, terms.digest, *(message.digest for message in ordered))


_BARE = {"site", "terms", "signature"}


def _under(message: Signed, terms: RoundTerms) -> bool:
    return message.terms == terms.digest


def _encoded(value: Any) -> str | bytes:
    if isinstance(value, Mapping):
        return encode("map", *(part for name in sorted(value) for part in (name, value[name])))
    return encode("list", *value) if isinstance(value, tuple) else value
