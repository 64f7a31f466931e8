"""A server that wants one site's vector: what refuses it, and what it would learn without the rule.

Each attack is played twice. With the rule taken out the server computes the victim's vector from
what it got, so the attack is a real one; with the rule in place the site refuses with a code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from medfl.errors import SecureSumRefused
from medfl.secure_sum import masks, messages, refusals, shamir, terms
from medfl.secure_sum.masks import Int64Array
from medfl.secure_sum.messages import (
    Advert,
    Confirmation,
    Delivery,
    MaskedInput,
    SealedShares,
    Unmasking,
)
from medfl.secure_sum.party import Party
from medfl.secure_sum.state import SiteState
from medfl.secure_sum.terms import Roster, RoundTerms
from tests.secure_sum.rounds import (
    make_parties,
    make_terms,
    make_vectors,
    play,
    public_key,
    sign_as,
    site_names,
)

VICTIM, FIRST, SECOND, THIRD = site_names(4)


def nothing(*arguments: object, **named: object) -> None:
    """A rule that has been taken out."""


def always(*arguments: object, **named: object) -> bool:
    """A question that is always answered with yes."""
    return True


def refused(code: str):
    """A refusal with this code."""
    return pytest.raises(SecureSumRefused, check=lambda error: error.code == code)


def deliveries_to(site: str, dealt: Sequence[SealedShares]) -> list[Delivery]:
    return [Delivery(dealing=one.dealing, sealed=one.sealed[site]) for one in dealt]


def rebuilt(terms: RoundTerms, held: Mapping[str, bytes]) -> bytes:
    """A secret of 32 bytes from shares by holder."""
    shares = {terms.roster.point_of(site): int.from_bytes(share) for site, share in held.items()}
    return shamir.reconstruct(shares, threshold=terms.threshold).to_bytes(32)


def shares_of(site: str, unmaskings: Sequence[Unmasking], kind: str) -> dict[str, bytes]:
    """Shares of one secret of a site, by holder, as the server got them."""
    return {one.site: getattr(one, kind)[site] for one in unmaskings if site in getattr(one, kind)}


def bare(
    terms: RoundTerms,
    masked: Sequence[MaskedInput],
    *,
    seeds: Mapping[str, bytes],
    keys: Mapping[str, bytes],
    adverts: Mapping[str, Advert],
) -> Int64Array:
    """The sum of masked vectors without the masks whose secrets the server has.

    Args:
        terms: Of the round.
        masked: Of the sites of the sum.
        seeds: Their self-mask seeds.
        keys: Mask keys of their peers outside of the sum.
        adverts: Of the sites of the sum.
    """
    words = masks.zero_words(terms.length, bits=terms.modulus_bits)
    for one in masked:
        masks.add_packed(words, one.vector, bits=terms.modulus_bits)
        own = masks.self_mask_key(seeds[one.site], dealers=one.dealers, site=one.site)
        masks.add_stream(words, own, sign=-1)
        for peer, private in keys.items():
            masks.remove_pair_mask(
                words,
                site=one.site,
                peer=peer,
                private=private,
                public=adverts[one.site].mask_key,
                dealers=one.dealers,
            )
    return masks.to_integers(words, bits=terms.modulus_bits)


class Round:
    """The server's view of an honest round up to the masked inputs, and the sites in it."""

    def __init__(self, terms: RoundTerms, *, seed: int = 0) -> None:
        self.terms, self.vectors = terms, make_vectors(terms, seed=seed)
        self.parties = make_parties(terms)
        self.adverts = {site: party.advertise() for site, party in self.parties.items()}
        adverts = list(self.adverts.values())
        self.dealt = [party.share(adverts) for party in self.parties.values()]

    def mask(self, *, of: Sequence[SealedShares] = ()) -> dict[str, MaskedInput]:
        """All sites mask, with all dealers."""
        self.masked = {
            site: party.mask(deliveries_to(site, of or self.dealt), self.vectors[site])
            for site, party in self.parties.items()
        }
        return self.masked

    def unmask(self, sets: Mapping[str, Sequence[str]]) -> list[Unmasking]:
        """Every site confirms the set that it is shown, and gets all confirmations of its set."""
        said = {site: self.parties[site].confirm(shown) for site, shown in sets.items()}
        return [
            self.parties[site].unmask(
                [said[other] for other in sets if said[other].survivors == said[site].survivors]
            )
            for site in sets
        ]


# --- somebody in the middle


def alone_among_impostors(victim: Party, impostors: Mapping[str, Party]) -> Int64Array:
    """The victim's vector, from a round in which the server plays all others."""
    terms = victim.terms
    vector = make_vectors(make_terms())[VICTIM]
    own = victim.advertise()
    adverts = [own, *(one.advertise() for one in impostors.values())]
    dealt = [victim.share(adverts), *(one.share(adverts) for one in impostors.values())]
    keys = {site: one._state.mask_key for site, one in impostors.items()}
    masked = victim.mask(deliveries_to(VICTIM, dealt), vector)
    for site, one in impostors.items():
        one.mask(deliveries_to(site, dealt), np.zeros_like(vector))
    # All shares of the victim's seed but one are sealed for the server itself.
    held = {site: one._state.seed_shares[VICTIM] for site, one in impostors.items()}
    seed = rebuilt(terms, held)
    found = bare(terms, [masked], seeds={VICTIM: seed}, keys=keys, adverts={VICTIM: own})
    assert np.array_equal(found, vector)
    return found


def test_swapped_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = make_terms()
    with monkeypatch.context() as patch:
        patch.setattr(messages, "is_signed", always)
        patch.setattr(refusals, "is_signed", always)
        impostors = {
            site: Party(terms, site=site, sign=sign_as("server")) for site in (FIRST, SECOND, THIRD)
        }
        alone_among_impostors(Party(terms, site=VICTIM, sign=sign_as(VICTIM)), impostors)
    victim = Party(terms, site=VICTIM, sign=sign_as(VICTIM))
    honest = {site: party.advertise() for site, party in make_parties(terms).items()}
    own = victim.advertise()
    for change in ({"mask_key": bytes(31) + b"\x09"}, {"sealing_key": bytes(31) + b"\x09"}):
        swapped = [own, *(replace(honest[site], **change) for site in (FIRST, SECOND, THIRD))]
        with refused("secure-sum-signature"):
            victim.share(swapped)
    with refused("secure-sum-advert"):
        victim.share(list(honest.values()))  # its own keys were swapped for others that it signed
    with refused("secure-sum-advert"):
        victim.share([own, own, honest[FIRST], honest[SECOND]])


def test_an_invented_site(monkeypatch: pytest.MonkeyPatch) -> None:
    terms, invented = make_terms(), ["invented-1", "invented-2", "invented-3"]
    with monkeypatch.context() as patch:
        known = Roster.key_of
        patch.setattr(
            Roster, "key_of", lambda self, site: known(self, site) or public_key("server")
        )
        patch.setattr(Roster, "point_of", lambda _self, site: [VICTIM, *invented].index(site) + 1)
        impostors = {site: Party(terms, site=site, sign=sign_as("server")) for site in invented}
        alone_among_impostors(Party(terms, site=VICTIM, sign=sign_as(VICTIM)), impostors)
        made_up = [one.advertise() for one in map(fresh_impostor(terms), invented)]
    victim = Party(terms, site=VICTIM, sign=sign_as(VICTIM))
    with refused("secure-sum-roster"):
        victim.share([victim.advertise(), *made_up])


def fresh_impostor(terms: RoundTerms):
    return lambda site: Party(terms, site=site, sign=sign_as("server"))


def test_a_site_that_is_not_on_the_roster_does_not_begin() -> None:
    with refused("secure-sum-roster"):
        Party(make_terms(), site="site-999", sign=sign_as("site-999"))
    with refused("secure-sum-roster"):
        Party(make_terms(), site=VICTIM, sign=sign_as(FIRST))


# --- fewer than the threshold


def test_all_but_one_claimed_to_have_dropped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def view(attacked: Round) -> None:
        peers = (FIRST, SECOND, THIRD)
        masked = attacked.mask()[VICTIM]
        # Each peer is told that it alone survived beside the victim.
        got = attacked.unmask({peer: [VICTIM, peer] for peer in peers} | {VICTIM: [VICTIM]})
        terms = attacked.terms
        found = bare(
            terms,
            [masked],
            seeds={VICTIM: rebuilt(terms, shares_of(VICTIM, got, "seeds"))},
            keys={peer: rebuilt(terms, shares_of(peer, got, "keys")) for peer in peers},
            adverts=attacked.adverts,
        )
        assert np.array_equal(found, attacked.vectors[VICTIM])

    with monkeypatch.context() as patch:
        patch.setattr(refusals, "require_enough", nothing)
        view(Round(make_terms()))
    with refused("secure-sum-threshold"):
        view(Round(make_terms()))


def test_no_peer_to_share_a_mask_with(monkeypatch: pytest.MonkeyPatch) -> None:
    attacked = Round(make_terms())
    terms, victim = attacked.terms, attacked.parties.pop(VICTIM)
    alone = deliveries_to(VICTIM, attacked.dealt[:1])
    with refused("secure-sum-threshold"):
        victim.mask(alone, attacked.vectors[VICTIM])
    with monkeypatch.context() as patch:
        patch.setattr(refusals, "require_enough", nothing)
        masked = victim.mask(alone, attacked.vectors[VICTIM])
    attacked.mask()  # the others believe that the victim is among them
    everybody = [VICTIM, FIRST, SECOND, THIRD]
    got = attacked.unmask(dict.fromkeys(everybody[1:], everybody))
    seed = rebuilt(terms, shares_of(VICTIM, got, "seeds"))
    found = bare(terms, [masked], seeds={VICTIM: seed}, keys={}, adverts=attacked.adverts)
    assert np.array_equal(found, attacked.vectors[VICTIM])


def test_fewer_than_the_threshold_in_any_phase() -> None:
    attacked = Round(make_terms())
    newcomer = make_parties(attacked.terms)[VICTIM]
    own = newcomer.advertise()
    with refused("secure-sum-threshold"):
        newcomer.share([own, attacked.adverts[FIRST]])
    attacked.mask()
    victim = attacked.parties[VICTIM]
    with refused("secure-sum-threshold"):
        victim.confirm([VICTIM, FIRST])
    said = [attacked.parties[site].confirm(site_names(4)) for site in (VICTIM, FIRST)]
    with refused("secure-sum-threshold"):
        victim.unmask(said)
    with refused("secure-sum-threshold"):
        victim.unmask([said[0]] * 4)


# --- two sets of survivors


def both_secrets_of_the_victim(attacked: Round) -> Int64Array:
    """Ask every peer twice: the victim survived, and it did not."""
    everybody, others = site_names(4), site_names(4)[1:]
    masked = attacked.mask()[VICTIM]
    got = attacked.unmask(dict.fromkeys(others, everybody))
    again = attacked.unmask(dict.fromkeys(others, others))
    terms = attacked.terms
    words = masks.zero_words(terms.length, bits=terms.modulus_bits)
    masks.add_packed(words, masked.vector, bits=terms.modulus_bits)
    seed = rebuilt(terms, shares_of(VICTIM, got, "seeds"))
    key = rebuilt(terms, shares_of(VICTIM, again, "keys"))
    own = masks.self_mask_key(seed, dealers=masked.dealers, site=VICTIM)
    masks.add_stream(words, own, sign=-1)
    for peer in others:
        masks.remove_pair_mask(
            words,
            site=VICTIM,
            peer=peer,
            private=key,
            public=attacked.adverts[peer].mask_key,
            dealers=masked.dealers,
        )
    return masks.to_integers(words, bits=terms.modulus_bits)


def test_two_sets_to_one_site_for_both_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("secure-sum-again"):
        both_secrets_of_the_victim(Round(make_terms()))
    with monkeypatch.context() as patch:
        patch.setattr(refusals, "require_one_set", nothing)
        with refused("secure-sum-both-secrets"):  # the line behind the first one
            both_secrets_of_the_victim(Round(make_terms()))
        patch.setattr(refusals, "require_one_secret", nothing)
        attacked = Round(make_terms())
        assert np.array_equal(both_secrets_of_the_victim(attacked), attacked.vectors[VICTIM])


def test_two_sets_to_two_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Expected a threshold"):
        make_terms(4, threshold=2)
    with monkeypatch.context() as patch:
        patch.setattr(terms, "_is_sound", always)
        attacked = Round(make_terms(4, threshold=2))
    masked = attacked.mask()
    one, other = [VICTIM, FIRST], [SECOND, THIRD]
    got = attacked.unmask(dict.fromkeys(one, one) | dict.fromkeys(other, other))
    found = bare(
        attacked.terms,
        [masked[VICTIM]],
        seeds={VICTIM: rebuilt(attacked.terms, shares_of(VICTIM, got, "seeds"))},
        keys={
            peer: rebuilt(attacked.terms, shares_of(peer, got, "keys")) for peer in (SECOND, THIRD)
        }
        # The first one's key came out of the other half, to which it had dropped out.
        | {FIRST: rebuilt(attacked.terms, shares_of(FIRST, got, "keys"))},
        adverts=attacked.adverts,
    )
    assert np.array_equal(found, attacked.vectors[VICTIM])


def test_sets_that_nobody_else_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sound threshold inconsistent sets still give the sum of two sites out of five."""
    a, b, c, d, e = site_names(5)
    shown = {a: [a, b, e], b: [a, b, c], c: [a, b, c], d: [a, b, d], e: [a, b, e]}

    def view(attacked: Round) -> None:
        masked = attacked.mask()
        said = {site: attacked.parties[site].confirm(names) for site, names in shown.items()}
        got = [attacked.parties[site].unmask(list(said.values())) for site in shown]
        found = bare(
            attacked.terms,
            [masked[a], masked[b]],
            seeds={site: rebuilt(attacked.terms, shares_of(site, got, "seeds")) for site in (a, b)},
            keys={
                site: rebuilt(attacked.terms, shares_of(site, got, "keys")) for site in (c, d, e)
            },
            adverts=attacked.adverts,
        )
        # With the second one on its side the server has the first one's vector.
        assert np.array_equal(found - attacked.vectors[b], attacked.vectors[a])

    with monkeypatch.context() as patch:
        patch.setattr(refusals, "require_agreement", nothing)
        view(Round(make_terms(5)))
    with refused("secure-sum-survivors"):
        view(Round(make_terms(5)))


@pytest.mark.parametrize(
    "survivors",
    [[FIRST, SECOND, THIRD], [VICTIM, FIRST, "site-999"], [VICTIM, FIRST, SECOND, SECOND]],
)
def test_survivors_that_cannot_be(survivors: list[str]) -> None:
    attacked = Round(make_terms())
    attacked.mask()
    with refused("secure-sum-survivors"):
        attacked.parties[VICTIM].confirm(survivors)


def test_confirmations_of_who_did_not_survive_do_not_count() -> None:
    attacked = Round(make_terms())
    attacked.mask()
    shown = [VICTIM, FIRST, SECOND]
    said = [attacked.parties[site].confirm(shown) for site in shown]
    outsider = messages.signed(replace(said[0], site=THIRD, signature=""), sign_as(THIRD))
    with refused("secure-sum-survivors"):
        attacked.parties[VICTIM].unmask([*said[:2], outsider])


# --- asking twice


def test_two_vectors_behind_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def view(attacked: Round) -> None:
        victim, vector = attacked.parties[VICTIM], attacked.vectors[VICTIM]
        delivered = deliveries_to(VICTIM, attacked.dealt)
        first, second = victim.mask(delivered, vector), victim.mask(delivered, vector // 2)
        difference = np.zeros(attacked.terms.length, dtype="<u8")
        masks.add_packed(difference, second.vector, bits=40)
        difference = np.negative(difference)
        masks.add_packed(difference, first.vector, bits=40)
        assert np.array_equal(masks.to_integers(difference, bits=40), vector - vector // 2)

    with monkeypatch.context() as patch:
        patch.setattr(refusals, "require_phase", nothing)
        patch.setattr(SiteState, "forget_own_secrets", nothing)
        view(Round(make_terms()))
    with refused("secure-sum-again"):
        view(Round(make_terms()))


def test_the_same_question_again_gets_the_same_answer() -> None:
    attacked = Round(make_terms())
    attacked.mask()
    everybody = site_names(4)
    victim = attacked.parties[VICTIM]
    said = victim.confirm(everybody)
    assert victim.confirm(everybody[::-1]) == said
    all_said = [attacked.parties[site].confirm(everybody) for site in everybody]
    assert victim.unmask(all_said) == victim.unmask(all_said[:3])


# --- other rounds, other terms


def test_messages_of_another_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dropped out of a round has lost the key of its masks: never again may they be used.

    Three rules stand in the way, and only without all of them the server learns something.
    """
    old = Round(make_terms(3))
    old.mask()
    got = old.unmask({site: [VICTIM, FIRST] for site in (VICTIM, FIRST)})
    lost = rebuilt(old.terms, shares_of(SECOND, got, "keys"))
    new = make_terms(3, round=2)
    vectors = make_vectors(new, seed=1)

    def view() -> None:
        parties = make_parties(new)
        now = {site: party.advertise() for site, party in parties.items()}
        dealt = {VICTIM: parties[VICTIM].share([now[VICTIM], now[FIRST], old.adverts[SECOND]])}
        dealt |= {site: parties[site].share(list(now.values())) for site in (FIRST, SECOND)}
        delivered = deliveries_to(VICTIM, [dealt[VICTIM], old.dealt[2]])
        masked = parties[VICTIM].mask(delivered, vectors[VICTIM])
        for site in (FIRST, SECOND):
            parties[site].mask(deliveries_to(site, list(dealt.values())), vectors[site])
        shown = {site: [VICTIM, site] for site in (FIRST, SECOND)} | {VICTIM: [VICTIM, SECOND]}
        said = [parties[site].confirm(names) for site, names in shown.items()]
        answers = [parties[site].unmask(said) for site in (VICTIM, FIRST)]
        found = bare(
            new,
            [masked],
            seeds={VICTIM: rebuilt(new, shares_of(VICTIM, answers, "seeds"))},
            keys={SECOND: lost},
            adverts=now,
        )
        assert np.array_equal(found, vectors[VICTIM])

    with refused("secure-sum-terms"):
        view()
    with monkeypatch.context() as patch:
        patch.setattr(messages, "_under", always)
        with refused("secure-sum-transcript"):
            view()
        patch.setattr(refusals, "require_same", nothing)
        with refused("secure-sum-survivors"):
            view()
        patch.setattr(refusals, "require_agreement", nothing)
        view()


def test_every_message_of_another_round_is_refused() -> None:
    old, new = Round(make_terms()), Round(make_terms(round=2))
    old.mask()
    victim = make_parties(new.terms)[VICTIM]
    victim.advertise()
    with refused("secure-sum-terms"):
        victim.share(list(old.adverts.values()))
    with refused("secure-sum-terms"):
        new.parties[VICTIM].mask(deliveries_to(VICTIM, old.dealt), new.vectors[VICTIM])
    new.mask()
    said: list[Confirmation] = [party.confirm(site_names(4)) for party in old.parties.values()]
    new.parties[VICTIM].confirm(site_names(4))
    with refused("secure-sum-terms"):
        new.parties[VICTIM].unmask(said)


def test_an_old_round_is_over() -> None:
    attacked = Round(make_terms())
    attacked.mask()
    everybody = site_names(4)
    said = [attacked.parties[site].confirm(everybody) for site in everybody]
    victim = attacked.parties[VICTIM]
    victim.unmask(said)
    victim.forget()
    for party in (victim, Party.restore(victim.state(), sign=sign_as(VICTIM))):
        for ask in (
            lambda party=party: party.advertise(),
            lambda party=party: party.share(list(attacked.adverts.values())),
            lambda party=party: party.mask(
                deliveries_to(VICTIM, attacked.dealt), attacked.vectors[VICTIM]
            ),
            lambda party=party: party.confirm(everybody),
            lambda party=party: party.unmask(said),
        ):
            with refused("secure-sum-order"):
                ask()


@pytest.mark.parametrize(
    "change",
    [
        {"modulus_bits": 64},
        {"scale": "2^30/1.5"},
        {"model_digest": "b" * 64},
        {"bound": 2**20},
        {"threshold": 4},
        {"length": 6},
        {"run": "run-2"},
        {"colluding_sites": 1},
    ],
)
def test_other_terms_for_the_victim_than_for_the_others(change: dict[str, object]) -> None:
    told = make_terms(**change)
    victim = Party(told, site=VICTIM, sign=sign_as(VICTIM))
    others = make_parties(make_terms())
    adverts = [others[site].advertise() for site in (FIRST, SECOND, THIRD)]
    own = victim.advertise()
    with refused("secure-sum-terms"):
        victim.share([own, *adverts])


@pytest.mark.parametrize(("name", "told"), [("model_digest", "b" * 64), ("scale", "2^-40/1.5")])
def test_a_model_or_scale_that_makes_all_others_vanish(
    monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    """Where the terms did not bind it, the sum would be the victim's vector."""
    honest, other = make_terms(), make_terms(**{name: told})
    vectors = {
        site: vector if site == VICTIM else np.zeros_like(vector)
        for site, vector in make_vectors(honest).items()
    }
    bound = terms._bound_fields
    with monkeypatch.context() as patch:
        patch.setattr(
            terms,
            "_bound_fields",
            lambda found: [field for field in bound(found) if field != getattr(found, name)],
        )
        loose, told_to_others = make_terms(), make_terms(**{name: told})
        assert loose.digest == told_to_others.digest
    others = (FIRST, SECOND, THIRD)
    # The digests are kept from the moment in which they did not bind it.
    played = play(loose, vectors, told=dict.fromkeys(others, told_to_others))
    assert np.array_equal(played.total, vectors[VICTIM])
    bound_again = play(honest, vectors, told=dict.fromkeys(others, other))
    assert bound_again.total.size == 0
    assert set(bound_again.refused.values()) == {"secure-sum-terms"}
