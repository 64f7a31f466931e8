"""What a site stores between two phases: whole and secret, or refused."""

from __future__ import annotations

import copy
import json
import pickle
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.errors import PrivacyError, SecureSumRefused
from medfl.secure_sum.collector import Collector
from medfl.secure_sum.messages import Advert
from medfl.secure_sum.party import Party
from medfl.secure_sum.state import Phase, SiteState
from tests.secure_sum.rounds import make_parties, make_terms, make_vectors, sign_as

SITE = "site-001"
OWN_SECRETS = ("mask_key", "sealing_key", "seed")


@cache
def states() -> dict[str, bytes]:
    """The state of a site after every phase of one round, in which another site fell out."""
    terms = make_terms(4)
    vectors, parties, collector = make_vectors(terms), make_parties(terms), Collector(terms)
    found = {"fresh": parties[SITE].state()}
    for party in parties.values():
        collector.take_advert(party.advertise())
    found["advertised"] = parties[SITE].state()
    for party in parties.values():
        collector.take_shares(party.share(collector.adverts()))
    found["shared"] = parties[SITE].state()
    del parties["site-000"]
    for site, party in parties.items():
        collector.take_masked(party.mask(collector.deliveries_for(site), vectors[site]))
    found["masked"] = parties[SITE].state()
    for party in parties.values():
        collector.take_confirmation(party.confirm(collector.survivors()))
    found["confirmed"] = parties[SITE].state()
    parties[SITE].unmask(collector.confirmations())
    found["unmasked"] = parties[SITE].state()
    parties[SITE].forget()
    found["spent"] = parties[SITE].state()
    return found


STEPS = list(states())


def restored(state: bytes) -> Party:
    return Party.restore(state, sign=sign_as(SITE))


def body(state: bytes) -> dict[str, object]:
    return json.loads(state[state.index(b'{"terms"') :])


@pytest.mark.parametrize("step", STEPS)
def test_a_restored_site_is_where_it_was(step: str) -> None:
    party = restored(states()[step])
    assert party.state() == states()[step]
    assert party.terms == make_terms(4)


@pytest.mark.parametrize("step", STEPS)
@given(bit=st.integers(0, 2**20))
def test_one_flipped_bit_of_a_state_is_refused(step: str, bit: int) -> None:
    spoilt = bytearray(states()[step])
    spoilt[bit // 8 % len(spoilt)] ^= 1 << bit % 8
    with pytest.raises(SecureSumRefused, check=lambda e: e.code == "secure-sum-state"):
        restored(bytes(spoilt))


@pytest.mark.parametrize("content", [b"", b"{}", b"medfl secure sum state 1\n"])
def test_what_is_no_state_is_refused(content: bytes) -> None:
    with pytest.raises(SecureSumRefused, check=lambda e: e.code == "secure-sum-state"):
        restored(content)


def test_a_cut_state_is_refused() -> None:
    for length in range(0, len(states()["shared"]), 97):
        with pytest.raises(SecureSumRefused, check=lambda e: e.code == "secure-sum-state"):
            restored(states()["shared"][:length])


def test_the_state_of_another_site_is_refused() -> None:
    with pytest.raises(SecureSumRefused, check=lambda e: e.code == "secure-sum-roster"):
        Party.restore(states()["shared"], sign=sign_as("site-002"))


def test_the_secrets_go_as_soon_as_they_have_served() -> None:
    found = {step: body(state) for step, state in states().items()}
    own = {step: all(found[step][name] for name in OWN_SECRETS) for step in STEPS}
    assert own == {step: step in {"advertised", "shared"} for step in STEPS}
    for step in ("masked", "confirmed", "unmasked", "spent"):
        text = states()[step]
        assert not any(str(found["shared"][name]).encode() in text for name in OWN_SECRETS)
    shares = {step: bool(found[step]["seed_shares"]) for step in STEPS}
    assert shares == {step: step in {"masked", "confirmed", "unmasked"} for step in STEPS}
    assert found["spent"]["phase"] == Phase.SPENT


@pytest.mark.parametrize("step", STEPS)
def test_nothing_secret_is_shown(step: str) -> None:
    party, content = restored(states()[step]), body(states()[step])
    shown = f"{party!r} {party} {party._state!r} {party._state}"
    assert shown.count(SITE) == 4
    secrets = [str(content[name]) for name in OWN_SECRETS if content[name]]
    for shares in (content["seed_shares"], content["key_shares"]):
        assert isinstance(shares, dict)
        secrets += shares.values()
    assert not any(secret in shown for secret in secrets)
    assert "bytes" not in shown
    assert "b'" not in shown
    assert not hasattr(party, "__dict__")


def test_a_message_shows_its_author_only() -> None:
    advert = Advert(site="a", terms="t", mask_key=b"m", sealing_key=b"s", seed_commitment=b"c")
    assert repr(advert) == "Advert(site='a')"


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_site_cannot_be_duplicated(duplicate) -> None:
    party = restored(states()["shared"])
    for one in (party, party._state):
        with pytest.raises(PrivacyError):
            duplicate(one)


def test_a_refusal_leaves_the_state_as_it_was() -> None:
    for step, ask in {
        "advertised": lambda party: party.share([]),
        "shared": lambda party: party.mask([], make_vectors(make_terms(4))[SITE]),
        "masked": lambda party: party.confirm([SITE]),
        "confirmed": lambda party: party.unmask([]),
    }.items():
        party = restored(states()[step])
        with pytest.raises(SecureSumRefused):
            ask(party)
        assert party.state() == states()[step]


def test_what_was_revealed_is_remembered() -> None:
    state = SiteState.from_bytes(states()["unmasked"])
    kinds = {site: kind.value for site, kind in state.revealed.items()}
    survivors = {"site-001": "seed", "site-002": "seed", "site-003": "seed"}
    assert kinds == {"site-000": "key", **survivors}
