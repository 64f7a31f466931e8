"""A site that breaks the rules: the round goes on without it or ends without a sum, never wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medfl.errors import SecureSumError, SecureSumRefused
from medfl.secure_sum import dealing, shamir
from medfl.secure_sum.collector import Collector
from medfl.secure_sum.messages import (
    Confirmation,
    MaskedInput,
    SealedShares,
    Unmasking,
    signed,
)
from medfl.secure_sum.state import SiteState
from tests.secure_sum.rounds import (
    PHASES,
    Played,
    make_parties,
    make_terms,
    make_vectors,
    play,
    sign_as,
    site_names,
    sum_of,
)

CULPRIT, *OTHERS = site_names(5)
ZEROS = "0" * 64


def _of(value: Any, message: Any) -> Any:
    return value(message) if callable(value) else value


def tampered(phase: str, change: dict[str, Any]):
    """The culprit changes fields of a message and signs it again."""

    def upstream(found: str, site: str, message: Any) -> Any:
        if found != phase or site != CULPRIT:
            return message
        if isinstance(message, SealedShares):
            fields = {name: _of(value, message.dealing) for name, value in change.items()}
            altered = replace(message.dealing, **fields, signature="")
            return replace(message, dealing=signed(altered, sign_as(CULPRIT)))
        fields = {name: _of(value, message) for name, value in change.items()}
        return signed(replace(message, **fields, signature=""), sign_as(CULPRIT))

    return upstream


def goes_on_without_the_culprit(played: Played, vectors: Any) -> None:
    assert played.code == ""
    survivors = tuple(sorted(set(played.survivors) - {CULPRIT}))
    assert survivors == tuple(OTHERS)
    assert np.array_equal(played.total, sum_of(vectors, played.survivors))


@pytest.mark.parametrize(
    ("phase", "change", "code"),
    [
        ("advertise", {"terms": ZEROS}, "secure-sum-terms"),
        ("advertise", {"site": "site-999"}, "secure-sum-roster"),
        ("advertise", {"site": OTHERS[0]}, "secure-sum-signature"),
        ("advertise", {"mask_key": bytes(32)}, "secure-sum-keys"),
        ("advertise", {"sealing_key": b"\x01" + bytes(31)}, "secure-sum-keys"),
        ("advertise", {"sealing_key": b"short"}, "secure-sum-keys"),
        ("advertise", {"sealing_key": lambda m: m.mask_key}, "secure-sum-keys"),
        ("share", {"adverts": ZEROS}, "secure-sum-transcript"),
        ("share", {"seed_hashes": {}}, "secure-sum-dealing"),
        ("share", {"key_hashes": lambda m: dict.fromkeys(m.key_hashes, b"")}, "secure-sum-dealing"),
        ("mask", {"dealers": ZEROS}, "secure-sum-transcript"),
        ("mask", {"vector": lambda m: m.vector[:-1]}, "secure-sum-length"),
        ("mask", {"vector": lambda m: m.vector + bytes(5)}, "secure-sum-length"),
        ("mask", {"vector": b""}, "secure-sum-length"),
        ("confirm", {"survivors": lambda m: m.survivors[:3]}, "secure-sum-survivors"),
        ("confirm", {"dealers": ZEROS}, "secure-sum-transcript"),
        ("unmask", {"dealers": ZEROS}, "secure-sum-transcript"),
        ("unmask", {"seeds": lambda m: dict.fromkeys(m.seeds, bytes(33))}, "secure-sum-share"),
        ("unmask", {"seeds": lambda m: dict.fromkeys(m.seeds, b"")}, "secure-sum-share"),
        ("unmask", {"keys": {OTHERS[0]: bytes(33)}}, "secure-sum-share"),
        ("unmask", {"keys": {"site-999": bytes(33)}}, "secure-sum-share"),
    ],
)
def test_a_message_that_breaks_a_rule_is_refused_and_the_round_goes_on(
    phase: str, change: dict[str, Any], code: str
) -> None:
    terms = make_terms(5)
    vectors = make_vectors(terms)
    played = play(terms, vectors, upstream=tampered(phase, change))
    assert played.refused == {CULPRIT: code}
    goes_on_without_the_culprit(played, vectors)


@pytest.mark.parametrize("phase", PHASES)
def test_silence_is_no_harm(phase: str) -> None:
    terms = make_terms(5)
    vectors = make_vectors(terms)
    goes_on_without_the_culprit(play(terms, vectors, silent={CULPRIT: phase}), vectors)


def test_a_revealed_share_may_be_missing_as_long_as_there_are_enough() -> None:
    terms = make_terms(5)
    vectors = make_vectors(terms)
    played = play(terms, vectors, upstream=tampered("unmask", {"seeds": {}}))
    assert played.refused == {}
    goes_on_without_the_culprit(played, vectors)


def test_keys_of_another_site_are_no_keys_of_ones_own() -> None:
    terms = make_terms(5)
    vectors = make_vectors(terms)
    seen: dict[str, Any] = {}

    def copy(phase: str, site: str, message: Any) -> Any:
        if phase == "advertise":
            seen[site] = message
            if site == OTHERS[-1]:
                stolen = replace(message, mask_key=seen[CULPRIT].mask_key, signature="")
                return signed(stolen, sign_as(site))
        return message

    played = play(terms, vectors, upstream=copy)
    assert played.refused == {OTHERS[-1]: "secure-sum-keys"}
    assert np.array_equal(played.total, sum_of(vectors, played.survivors))


@pytest.mark.parametrize("to", [OTHERS[:1], OTHERS[:2]])
def test_a_few_shares_that_cannot_be_opened_are_noted_and_not_missed(to: list[str]) -> None:
    terms = make_terms(5)
    vectors = make_vectors(terms)

    def garbage(phase: str, site: str, message: Any) -> Any:
        if phase == "share" and site == CULPRIT:
            spoilt = dict.fromkeys(to, bytes(94))
            return replace(message, sealed={**message.sealed, **spoilt})
        return message

    played = play(terms, vectors, upstream=garbage)
    assert played.survivors == (CULPRIT, *OTHERS)
    assert np.array_equal(played.total, sum_of(vectors, played.survivors))
    held = {site: party.unheld for site, party in played.parties.items()}
    assert held == {site: (CULPRIT,) if site in to else () for site in vectors}


@pytest.mark.parametrize("silent", [{}, {CULPRIT: "mask"}])
def test_too_many_shares_that_cannot_be_opened_leave_no_sum(silent: dict[str, str]) -> None:
    terms = make_terms(5)

    def garbage(phase: str, site: str, message: Any) -> Any:
        if phase == "share" and site == CULPRIT:
            return replace(message, sealed=dict.fromkeys(message.sealed, bytes(94)))
        return message

    played = play(terms, make_vectors(terms), upstream=garbage, silent=silent)
    assert played.code == "secure-sum-quorum"
    assert played.total.size == 0


@pytest.mark.parametrize("silent", [{}, {CULPRIT: "mask"}])
@pytest.mark.parametrize("inconsistent", [True, False])
def test_shares_of_something_else_leave_no_sum_and_name_their_dealer(
    monkeypatch: pytest.MonkeyPatch, silent: dict[str, str], inconsistent: bool
) -> None:
    """Hashes and seals hold, but the shares lie on no polynomial, or on that of another secret."""
    honest = dealing.deal

    def wrong_shares(secret: bytes, *, threshold: int, points: dict[str, int]) -> dict[str, bytes]:
        other = shamir.split(2**255 + 12345, threshold=threshold, points=points.values())
        shift = {site: number if inconsistent else 0 for number, site in enumerate(points)}
        return {site: (other[point] ^ shift[site]).to_bytes(33) for site, point in points.items()}

    def deal(state: SiteState, *arguments: Any, **named: Any) -> SealedShares:
        with monkeypatch.context() as patch:
            if state.site == CULPRIT:
                patch.setattr(dealing, "_shares", wrong_shares)
            return honest(state, *arguments, **named)

    monkeypatch.setattr("medfl.secure_sum.party.deal", deal)
    terms = make_terms(5)
    played = play(terms, make_vectors(terms), silent=silent)
    assert played.code == "secure-sum-dealing"
    assert played.total.size == 0
    with pytest.raises(SecureSumError, match=f"secret that {CULPRIT} committed to"):
        played.collector.total()


@pytest.mark.parametrize("bits", [32, 40, 64])
def test_a_vector_of_garbage_leaves_no_sum(bits: int) -> None:
    terms = make_terms(5, modulus_bits=bits, length=200, bound=2**20)
    noise = np.random.default_rng(0).bytes(200 * bits // 8)
    played = play(terms, make_vectors(terms), upstream=tampered("mask", {"vector": noise}))
    assert played.code == "secure-sum-range"


def test_a_sum_above_the_bound_is_no_sum_although_each_vector_keeps_to_it() -> None:
    terms = make_terms(3, bound=100, length=2)
    vectors = {site: np.array([50, 0]) for site in terms.roster.names}
    assert play(terms, vectors).code == "secure-sum-range"


@pytest.mark.parametrize(
    "vector",
    [
        np.array([101, 0]),
        np.array([0, -101]),
        np.array([-(2**63), 0]),
        np.array([1.0, 2.0]),
        np.array([1, 2], dtype=np.int32),
        np.array([1, 2, 3]),
        np.array([[1, 2]]),
    ],
)
def test_a_site_does_not_send_what_is_no_vector_of_the_round(vector: Any) -> None:
    terms = make_terms(3, bound=100, length=2)
    with pytest.raises(ValueError, match="Expected int"):
        play(terms, dict.fromkeys(terms.roster.names, vector))


# --- the order of things at the server


def test_late_and_repeated_messages_are_refused_and_change_nothing() -> None:
    terms = make_terms(4)
    vectors = make_vectors(terms)
    kept: dict[tuple[str, str], Any] = {}

    def keep(phase: str, site: str, message: Any) -> Any:
        kept[phase, site] = message
        return message

    played = play(terms, vectors, upstream=keep, silent={"site-003": "confirm"})
    takes = {
        "advertise": "take_advert",
        "share": "take_shares",
        "mask": "take_masked",
        "confirm": "take_confirmation",
        "unmask": "take_unmasking",
    }
    for (phase, _), message in kept.items():
        with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-order"):
            getattr(played.collector, takes[phase])(message)
    with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-order"):
        played.collector.total()
    assert np.array_equal(played.total, sum_of(vectors, played.survivors))


def test_every_message_counts_once() -> None:
    terms = make_terms(3)
    vectors, parties, collector = make_vectors(terms), make_parties(terms), Collector(terms)

    def take(accept: Any, message: Any) -> None:
        accept(message)
        with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-again"):
            accept(message)

    for party in parties.values():
        take(collector.take_advert, party.advertise())
    for party in parties.values():
        take(collector.take_shares, party.share(collector.adverts()))
    for site, party in parties.items():
        masked = party.mask(collector.deliveries_for(site), vectors[site])
        take(collector.take_masked, masked)
    for party in parties.values():
        take(collector.take_confirmation, party.confirm(collector.survivors()))
    for party in parties.values():
        take(collector.take_unmasking, party.unmask(collector.confirmations()))
    total, survivors = collector.total()
    assert np.array_equal(total, sum_of(vectors, survivors))


def test_the_server_asks_in_order_too() -> None:
    played = play(make_terms(3), make_vectors(make_terms(3)))
    assert played.collector.survivors() == tuple(site_names(3))
    fresh = Collector(make_terms(3))
    with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-quorum"):
        fresh.adverts()
    for ask in (fresh.survivors, fresh.confirmations, fresh.total):
        with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-order"):
            ask()


def test_who_fell_out_gets_and_gives_nothing_more() -> None:
    terms = make_terms(4)
    vectors = make_vectors(terms)
    played = play(terms, vectors, silent={"site-003": "share"})
    assert played.survivors == tuple(site_names(3))
    with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-dropped"):
        played.collector.deliveries_for("site-003")


def test_who_fell_out_cannot_come_back() -> None:
    terms = make_terms(4)
    vectors, parties, collector = make_vectors(terms), make_parties(terms), Collector(terms)
    names = {"site": "site-003", "terms": terms.digest, "dealers": ZEROS}

    def comes_back(accept: Any, message: Any) -> None:
        with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-dropped"):
            accept(signed(message, sign_as("site-003")))

    for party in parties.values():
        collector.take_advert(party.advertise())
    del parties["site-003"]
    for party in parties.values():
        collector.take_shares(party.share(collector.adverts()))
    for site, party in parties.items():
        masked = party.mask(collector.deliveries_for(site), vectors[site])
        comes_back(collector.take_masked, MaskedInput(**names, vector=masked.vector))
        collector.take_masked(masked)
    for party in parties.values():
        said = party.confirm(collector.survivors())
        late = Confirmation(**names, survivors=said.survivors)
        comes_back(collector.take_confirmation, late)
        collector.take_confirmation(said)
    for party in parties.values():
        answer = party.unmask(collector.confirmations())
        comes_back(collector.take_unmasking, Unmasking(**names, seeds=answer.seeds, keys={}))
        collector.take_unmasking(answer)
    total, survivors = collector.total()
    assert survivors == tuple(site_names(3))
    assert np.array_equal(total, sum_of(vectors, survivors))


def test_the_server_keeps_no_masked_vector() -> None:
    terms = make_terms(3, length=4000)
    seen: list[MaskedInput] = []

    def keep(phase: str, site: str, message: Any) -> Any:
        if phase == "mask":
            seen.append(message)
        return message

    played = play(terms, make_vectors(terms), upstream=keep)
    held = [value for value in vars(played.collector).values() if hasattr(value, "nbytes")]
    assert len(seen) == 3
    assert [array.shape for array in held] == [(4000,)]
    assert not any(
        isinstance(inner, MaskedInput)
        for value in vars(played.collector).values()
        if isinstance(value, dict)
        for inner in value.values()
    )


def test_a_party_refuses_phases_out_of_order() -> None:
    terms = make_terms(3)
    party = make_parties(terms)["site-000"]
    for ask in (
        lambda: party.share([]),
        lambda: party.mask([], np.zeros(5, dtype=np.int64)),
        lambda: party.confirm(site_names(3)),
        lambda: party.unmask([]),
    ):
        with pytest.raises(SecureSumRefused, check=lambda e: e.code == "secure-sum-order"):
            ask()
    party.advertise()
    with pytest.raises(SecureSumRefused, check=lambda e: e.code == "secure-sum-again"):
        party.advertise()
