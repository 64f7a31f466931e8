"""What all sites of a round have to agree on before one of them contributes.

A site builds the terms from what it knows itself: the roster of the run's start, the model that it
received, its own settings. Messages made under other terms are refused, and their keys would fit
nothing, so a server that tells two sites two stories gets no sum of the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from medfl.secure_sum.binding import digest, encode

MODULUS_BITS = (32, 40, 48, 56, 64)
"""Moduli whose integers fill whole bytes."""

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The sites of a run and the keys under which they sign.

    Attributes:
        sites: Pairs of name and public Ed25519 key (hexadecimal text), in ascending order of the
            names; see `Roster.of`.

    Raises:
        ValueError: If a name or key is malformed or occurs twice, or if the order is another.
    """

    sites: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.sites]
        keys = [key for _, key in self.sites]
        if names != sorted(set(names)):
            raise ValueError(f"Expected names in ascending order, each once, found {names}.")
        if len(set(keys)) < len(keys):
            raise ValueError("Expected a key of its own for every site, found one twice.")
        for name, key in self.sites:
            if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
                raise ValueError(f"Expected a name of 1 to {_MAX_NAME} letters, found {name!r}.")
            if not _HEX_DIGEST.fullmatch(key):
                raise ValueError(f"Expected 64 hexadecimal digits as the key of {name!r}.")
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))

    @classmethod
    def of(cls, keys: Mapping[str, str]) -> Self:
        """The roster of these names and their keys, in any order.

        Raises:
            ValueError: As the class says.
        """
        return cls(sites=tuple(sorted(keys.items())))

    @property
    def names(self) -> tuple[str, ...]:
        """All names in ascending order."""
        return tuple(name for name, _ in self.sites)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and keys, as hexadecimal text."""
        return digest("roster", *(field for site in self.sites for field in site))

    def key_of(self, site: str) -> str:
        """The key of a site; empty text for a name that is not on the roster."""
        return dict(self.sites).get(site, "")

    def point_of(self, site: str) -> int:
        """Where the polynomials of shared secrets are evaluated for a site: its position from 1.

        Raises:
            ValueError: If the name is not on the roster.
        """
        return self.names.index(site) + 1

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True, kw_only=True)
class RoundTerms:
    """One round of a secure sum.

    A round must never have two survivor sets that a threshold of sites unmasks. The signatures of
    two sets are 2 t; an honest site signs one set, c colluding ones may sign both: at most K + c.
    So t > (K + c) / 2 rules two sets out. It follows that t - c >= 1: among those who unmask is an
    honest site.

    Attributes:
        run: The run's identifier.
        round: From 1.
        roster: The K sites of the run.
        model_digest: SHA-256 of the global model that the site received, hexadecimal text. Sites
            that were sent different models never agree: else a model that makes all others'
            updates vanish would show one site's alone (Pasquini et al., arXiv 2111.07380).
        length: Number d of integers that a site contributes.
        modulus_bits: b; sums are computed modulo 2^b.
        bound: Every coordinate of an honest sum lies in [-bound, bound]. At least one further bit
            of the modulus is spare, so that a sum of garbage is noticed.
        scale: Canonical text of the integers' grid; another scale is another round.
        threshold: t; sites that have to stay to the end, and shares that rebuild a secret.
        colluding_sites: c; sites that may side with the server.

    Raises:
        ValueError: If a number is out of range or the threshold is unsound.
    """

    run: str
    round: int
    roster: Roster
    model_digest: str
    length: int
    modulus_bits: int
    bound: int
    scale: str
    threshold: int
    colluding_sites: int

    def __post_init__(self) -> None:
        if not self.run or not self.scale:
            raise ValueError("Expected a run and a scale, found an empty text.")
        if self.round < 1 or self.length < 1:
            raise ValueError(
                f"Expected a round >= 1 of length >= 1, found {self.round} and {self.length}."
            )
        if not _HEX_DIGEST.fullmatch(self.model_digest):
            raise ValueError(f"Expected a SHA-256 as model_digest, found {self.model_digest!r}.")
        if self.modulus_bits not in MODULUS_BITS:
            raise ValueError(f"Expected modulus_bits in {MODULUS_BITS}, found {self.modulus_bits}.")
        if not 0 < 2 * self.bound < 2 ** (self.modulus_bits - 1):
            raise ValueError(
                f"Expected 0 < 2 * bound < 2^{self.modulus_bits - 1}, found bound={self.bound}."
            )
        _require_sound_threshold(
            self.threshold, sites=len(self.roster), colluding_sites=self.colluding_sites
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all terms, as hexadecimal text."""
        return digest("terms", *_bound_fields(self))

    def to_dict(self) -> dict[str, Any]:
        """The terms as JSON types."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "roster": dict(self.roster.sites), "digest": self.digest}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Terms from `to_dict`.

        Raises:
            ValueError: If they are incomplete, of a wrong type, or other than their digest.
        """
        try:
            fields = {name: content[name] for name in cls.__dataclass_fields__}
            terms = cls(**{**fields, "roster": Roster.of(fields["roster"])})
        except (AttributeError, KeyError, TypeError):
            raise ValueError("Expected the terms of a round, found something else.") from None
        if terms.digest != content.get("digest"):
            raise ValueError("Expected terms of their own digest, found others.")
        return terms


def minimum_threshold(*, sites: int, colluding_sites: int) -> int:
    """The smallest sound threshold of K sites of which c may side with the server.

    Raises:
        ValueError: If there is none.
    """
    threshold = (sites + colluding_sites) // 2 + 1
    _require_sound_threshold(threshold, sites=sites, colluding_sites=colluding_sites)
    return threshold


def _require_sound_threshold(threshold: int, *, sites: int, colluding_sites: int) -> None:
    if sites < 2 or colluding_sites < 0:
        raise ValueError(
            "Expected two sites or more and colluding_sites >= 0, "
            f"found {sites} and {colluding_sites}."
        )
    if not _is_sound(threshold, sites=sites, colluding_sites=colluding_sites):
        raise ValueError(
            f"Expected a threshold of at most {sites} sites and above half of {sites} + "
            f"{colluding_sites}, found {threshold}."
        )


def _is_sound(threshold: int, *, sites: int, colluding_sites: int) -> bool:
    return sites + colluding_sites < 2 * threshold <= 2 * sites and threshold > colluding_sites


def _bound_fields(terms: RoundTerms) -> list[str | int | bytes]:
    return [
        encode("run", terms.run, terms.round),
        terms.roster.digest,
        terms.model_digest,
        terms.length,
        terms.modulus_bits,
        terms.bound,
        terms.scale,
        terms.threshold,
        terms.colluding_sites,
    ]
