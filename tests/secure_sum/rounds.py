"""Whole rounds of a secure sum in memory: who falls silent when, and hooks for whoever tampers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfl.errors import SecureSumError, SecureSumRefused
from medfl.secure_sum.collector import Collector
from medfl.secure_sum.masks import Int64Array
from medfl.secure_sum.messages import Sign
from medfl.secure_sum.party import Party
from medfl.secure_sum.terms import Roster, RoundTerms, minimum_threshold

PHASES = ("advertise", "share", "mask", "confirm", "unmask")

Upstream = Callable[[str, str, Any], Any]
"""Phase, site and message; returns the message that the server gets."""

Downstream = Callable[[str, str, Any], Any]
"""Phase, site and request; returns the request that the site gets."""


@cache
def event_key(name: str) -> Ed25519PrivateKey:
    """The key under which a site of this name signs."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def sign_as(name: str) -> Sign:
    """A site's signature."""
    return lambda content: event_key(name).sign(content).hex()


def public_key(name: str) -> str:
    """A site's key as the roster has it."""
    return event_key(name).public_key().public_bytes_raw().hex()


def site_names(count: int) -> list[str]:
    """Names in ascending order."""
    return [f"site-{number:03}" for number in range(count)]


def make_roster(count: int) -> Roster:
    """A roster of that many sites."""
    return Roster.of({name: public_key(name) for name in site_names(count)})


def make_terms(sites: int = 4, **changes: Any) -> RoundTerms:
    """The terms of a small round."""
    colluding = changes.get("colluding_sites", 0)
    fields: dict[str, Any] = {
        "run": "run-1",
        "round": 1,
        "roster": make_roster(sites),
        "model_digest": "a" * 64,
        "length": 5,
        "modulus_bits": 40,
        "bound": 2**30,
        "scale": "2^20/1.5",
        "threshold": minimum_threshold(sites=sites, colluding_sites=colluding),
        "colluding_sites": colluding,
    }
    return RoundTerms(**{**fields, **changes})


def make_vectors(terms: RoundTerms, *, seed: int = 0) -> dict[str, Int64Array]:
    """A contribution of every site; their sum keeps to the bound."""
    generator = np.random.default_rng(seed)
    largest = terms.bound // len(terms.roster)
    return {
        name: generator.integers(-largest, largest, terms.length, endpoint=True)
        for name in terms.roster.names
    }


def make_parties(
    terms: RoundTerms, *, told: Mapping[str, RoundTerms] | None = None
) -> dict[str, Party]:
    """All sites of a round, of which some were told other terms."""
    return {
        name: Party((told or {}).get(name, terms), site=name, sign=sign_as(name))
        for name in terms.roster.names
    }


def unchanged(phase: str, site: str, message: Any) -> Any:
    """A hook that does nothing."""
    return message


@dataclass
class Played:
    """How far a round came, and why sites fell out."""

    collector: Collector
    parties: dict[str, Party]
    refused: dict[str, str] = field(default_factory=dict)
    total: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    survivors: tuple[str, ...] = ()
    code: str = ""

    def ask(
        self,
        phase: str,
        request: Callable[[str], Any],
        take: Callable[[Any], None],
        *,
        upstream: Upstream,
        downstream: Downstream,
        silent: Mapping[str, str],
        restart: bool,
    ) -> None:
        """One phase: every site that is left answers a request, or falls out."""
        for site in list(self.parties):
            if silent.get(site, "") == phase:
                del self.parties[site]
                continue
            if restart:
                self.parties[site] = Party.restore(self.parties[site].state(), sign=sign_as(site))
            try:
                arguments = downstream(phase, site, request(site))
                answer = getattr(self.parties[site], phase)(*arguments)
                take(upstream(phase, site, answer))
            except (SecureSumError, SecureSumRefused) as error:
                self.refused[site] = error.code
                del self.parties[site]


def play(
    terms: RoundTerms,
    vectors: Mapping[str, Int64Array],
    *,
    silent: Mapping[str, str] | None = None,
    upstream: Upstream = unchanged,
    downstream: Downstream = unchanged,
    restart: bool = False,
    told: Mapping[str, RoundTerms] | None = None,
) -> Played:
    """A whole round.

    Args:
        terms: Of the round.
        vectors: By site.
        silent: The phase from which a site no longer answers.
        upstream: Changes a message on its way to the server.
        downstream: Changes a request, a tuple of arguments, on its way to a site.
        restart: Whether every phase of a site runs on a state restored from its bytes.
        told: Other terms, by site.
    """
    collector = Collector(terms)
    played = Played(collector, make_parties(terms, told=told))
    asked = {
        "advertise": (lambda _site: (), collector.take_advert),
        "share": (lambda _site: (collector.adverts(),), collector.take_shares),
        "mask": (
            lambda site: (collector.deliveries_for(site), vectors[site]),
            collector.take_masked,
        ),
        "confirm": (lambda _site: (collector.survivors(),), collector.take_confirmation),
        "unmask": (lambda _site: (collector.confirmations(),), collector.take_unmasking),
    }
    close = {
        "advertise": collector.adverts,
        "share": lambda: collector.deliveries_for(next(iter(played.parties))),
        "mask": collector.survivors,
        "confirm": collector.confirmations,
        "unmask": lambda: None,
    }
    try:
        for phase in PHASES:
            request, take = asked[phase]
            played.ask(
                phase,
                request,
                take,
                upstream=upstream,
                downstream=downstream,
                silent=silent or {},
                restart=restart,
            )
            if not played.parties:
                raise SecureSumError("Expected a site, found none.", code="secure-sum-quorum")
            close[phase]()
        played.total, played.survivors = collector.total()
    except SecureSumError as error:
        played.code = error.code
    return played


def sum_of(vectors: Mapping[str, Int64Array], sites: tuple[str, ...]) -> Int64Array:
    """The same sum by plain addition."""
    total: Int64Array = np.sum([vectors[site] for site in sites], axis=0)
    return total
