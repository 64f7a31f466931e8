"""What a site refuses of each message, beside the attacks of `test_hostile_server`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medfl.errors import FederationError, PrivacyError, SecureSumError, SecureSumRefused
from medfl.secure_sum.messages import Delivery, SealedShares, signed
from medfl.secure_sum.party import Party
from tests.secure_sum.rounds import make_parties, make_terms, make_vectors, sign_as, site_names

SITE, *PEERS = site_names(4)
VECTOR = make_vectors(make_terms())[SITE]
PLACE = "site-001"


def refused(code: str):
    """A refusal with this code."""
    return pytest.raises(SecureSumRefused, check=lambda error: error.code == code)


def forged(message: Any, author: str = "", **change: Any) -> Any:
    """A message with other fields: under its old signature, or signed by an accomplice."""
    altered = replace(message, **change)
    return signed(altered, sign_as(author)) if author else altered


class Dealt:
    """A round in which all sites have dealt, each among the adverts that it was shown."""

    def __init__(self, *, without: dict[str, str] | None = None) -> None:
        self.parties = make_parties(make_terms())
        adverts = {site: party.advertise() for site, party in self.parties.items()}
        hidden = without or {}
        self.shares: dict[str, SealedShares] = {
            site: party.share([one for one in adverts.values() if hidden.get(site) != one.site])
            for site, party in self.parties.items()
        }

    def deliveries(self, *, to: str = SITE) -> list[Delivery]:
        return [
            Delivery(dealing=one.dealing, sealed=one.sealed.get(to, b""))
            for one in self.shares.values()
        ]


def test_codes_tell_refusals_of_a_site_from_failures_of_a_round() -> None:
    assert issubclass(SecureSumRefused, PrivacyError)
    assert issubclass(SecureSumError, FederationError)
    assert SecureSumRefused("").code == SecureSumError("").code == "secure-sum"


@pytest.mark.parametrize(
    "keys",
    [
        {"mask_key": bytes(32)},
        {"sealing_key": b"\x01" + bytes(31)},
        {"mask_key": b"short"},
    ],
)
def test_an_accomplice_with_an_unusable_key_is_refused(keys: dict[str, bytes]) -> None:
    parties = make_parties(make_terms())
    adverts = {site: party.advertise() for site, party in parties.items()}
    adverts[PLACE] = forged(adverts[PLACE], PLACE, **keys)
    with refused("secure-sum-keys"):
        parties[SITE].share(list(adverts.values()))


@pytest.mark.parametrize("name", ["mask_key", "sealing_key"])
def test_an_accomplice_with_another_sites_key_is_refused(name: str) -> None:
    parties = make_parties(make_terms())
    adverts = {site: party.advertise() for site, party in parties.items()}
    for stolen in (adverts[SITE], adverts[PEERS[2]]):
        spoilt = {**adverts, PLACE: forged(adverts[PLACE], PLACE, **{name: stolen.mask_key})}
        with refused("secure-sum-keys"):
            parties[SITE].share(list(spoilt.values()))


@pytest.mark.parametrize("site", [SITE, PLACE])
def test_adverts_that_not_everybody_saw_alike_are_noticed(site: str) -> None:
    dealt = Dealt(without={site: PEERS[-1]})
    with refused("secure-sum-transcript"):
        dealt.parties[SITE].mask(dealt.deliveries(), VECTOR)


def test_an_accomplice_with_two_adverts_is_noticed() -> None:
    parties = make_parties(make_terms())
    adverts = {site: party.advertise() for site, party in parties.items()}
    twin = Party(make_terms(), site=PLACE, sign=sign_as(PLACE))
    other = {**adverts, PLACE: twin.advertise()}
    shares = [
        parties[SITE].share(list(adverts.values())),
        twin.share(list(other.values())),
        *(parties[site].share(list(other.values())) for site in PEERS[1:]),
    ]
    delivered = [Delivery(dealing=one.dealing, sealed=one.sealed[SITE]) for one in shares]
    with refused("secure-sum-transcript"):
        parties[SITE].mask(delivered, VECTOR)


def test_dealings_have_to_be_signed_one_each_and_with_the_own_one() -> None:
    dealt = Dealt()
    delivered = dealt.deliveries()
    mask = dealt.parties[SITE].mask
    unsigned = forged(delivered[1].dealing, seed_hashes=delivered[2].dealing.seed_hashes)
    with refused("secure-sum-signature"):
        mask([delivered[0], replace(delivered[1], dealing=unsigned), *delivered[2:]], VECTOR)
    with refused("secure-sum-dealing"):
        mask(delivered[1:], VECTOR)
    with refused("secure-sum-dealing"):
        mask([*delivered, delivered[1]], VECTOR)
    own = forged(delivered[0].dealing, SITE, seed_hashes=delivered[1].dealing.seed_hashes)
    with refused("secure-sum-dealing"):
        mask([replace(delivered[0], dealing=own), *delivered[1:]], VECTOR)
    fewer = forged(delivered[1].dealing, PLACE, seed_hashes={})
    with refused("secure-sum-transcript"):
        mask([delivered[0], replace(delivered[1], dealing=fewer), *delivered[2:]], VECTOR)
    assert len(mask(delivered, VECTOR).vector) == 25  # no refusal has spoilt the round


def test_the_order_of_what_arrives_does_not_matter() -> None:
    dealt = Dealt()
    masked = [
        dealt.parties[site].mask(dealt.deliveries(to=site)[::step], VECTOR)
        for site, step in ((SITE, 1), (PLACE, -1))
    ]
    assert masked[0].dealers == masked[1].dealers


def test_shares_for_another_site_are_not_held() -> None:
    dealt = Dealt()
    dealt.parties[SITE].mask(dealt.deliveries(to=PEERS[-1]), VECTOR)
    assert dealt.parties[SITE].unheld == (SITE, *PEERS)


def test_shares_that_do_not_fit_the_signed_hashes_are_not_held() -> None:
    dealt = Dealt()
    delivered = dealt.deliveries()
    for number, name in ((1, "seed_hashes"), (2, "key_hashes")):
        dealing = delivered[number].dealing
        wrong = {**getattr(dealing, name), SITE: bytes(32)}
        dealing = forged(dealing, dealing.site, **{name: wrong})
        delivered[number] = replace(delivered[number], dealing=dealing)
    dealt.parties[SITE].mask(delivered, VECTOR)
    assert dealt.parties[SITE].unheld == tuple(PEERS[:2])


def test_a_vector_that_was_refused_may_be_corrected() -> None:
    dealt = Dealt()
    with pytest.raises(ValueError, match="int64"):
        dealt.parties[SITE].mask(dealt.deliveries(), VECTOR.astype(float))  # type: ignore[arg-type]
    before = VECTOR.copy()
    dealt.parties[SITE].mask(dealt.deliveries(), VECTOR)
    assert np.array_equal(VECTOR, before)


def test_confirmations_have_to_be_signed_and_of_the_same_dealings() -> None:
    dealt = Dealt()
    for site, party in dealt.parties.items():
        party.mask(dealt.deliveries(to=site), VECTOR)
    said = [party.confirm(site_names(4)) for party in dealt.parties.values()]
    unmask = dealt.parties[SITE].unmask
    with refused("secure-sum-signature"):
        unmask([*said[:3], forged(said[3], PLACE)])
    with refused("secure-sum-transcript"):
        unmask([*said[:3], forged(said[3], said[3].site, dealers="0" * 64)])
    with refused("secure-sum-roster"):
        unmask([*said[:3], forged(said[3], "site-999", site="site-999")])
    answer = unmask(said[1:])
    assert set(answer.seeds) == set(site_names(4))
    assert answer.keys == {}
