"""Messages as bytes: whole, or refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfl.errors import SecureSumError
from medfl.secure_sum.messages import (
    Advert,
    Confirmation,
    Delivery,
    MaskedInput,
    SealedShares,
    Unmasking,
)
from tests.secure_sum.rounds import (
    PHASES,
    Played,
    make_terms,
    make_vectors,
    play,
    sum_of,
)

TERMS = make_terms(5)
VECTORS = make_vectors(TERMS)
SITE = "site-002"
KINDS: dict[str, Any] = {
    "advertise": Advert,
    "share": SealedShares,
    "mask": MaskedInput,
    "confirm": Confirmation,
    "unmask": Unmasking,
}


def over_the_wire(message: Any, *, flip: int = -1) -> Any:
    """A message through JSON text, or raw bytes for a vector, with one bit changed on the way."""
    if isinstance(message, MaskedInput):
        text = json.dumps(message.to_dict()).encode()
        whole = flipped(text + message.vector, flip)
        return MaskedInput.from_dict(json.loads(whole[: len(text)]), vector=whole[len(text) :])
    whole = flipped(json.dumps(message.to_dict()).encode(), flip)
    return type(message).from_dict(json.loads(whole))


def flipped(content: bytes, bit: int) -> bytes:
    if bit < 0:
        return content
    spoilt = bytearray(content)
    spoilt[bit // 8 % len(spoilt)] ^= 1 << bit % 8
    return bytes(spoilt)


def is_exact_or_none(played: Played) -> bool:
    if played.code:
        return played.total.size == 0
    return np.array_equal(played.total, sum_of(VECTORS, played.survivors))


@pytest.fixture(scope="module")
def sent() -> dict[str, Any]:
    """One message of each phase."""
    found: dict[str, Any] = {}

    def keep(phase: str, site: str, message: Any) -> Any:
        if site == SITE:
            found[phase] = message
        return message

    play(TERMS, VECTORS, upstream=keep, silent={"site-000": "mask"})
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_survives_the_wire(sent: dict[str, Any], phase: str) -> None:
    assert over_the_wire(sent[phase]) == sent[phase]
    assert isinstance(sent[phase], KINDS[phase])


def test_a_whole_round_over_the_wire_gives_the_same_sum() -> None:
    def up(phase: str, site: str, message: Any) -> Any:
        return over_the_wire(message)

    def down(phase: str, site: str, request: Any) -> Any:
        if phase in {"advertise", "confirm"}:
            return request
        return ([over_the_wire(one) for one in request[0]], *request[1:])

    played = play(TERMS, VECTORS, upstream=up, downstream=down, restart=True)
    assert played.code == ""
    assert len(played.survivors) == 5
    assert is_exact_or_none(played)


@pytest.mark.slow
@given(st.sampled_from(PHASES), st.integers(0, 2**20))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_a_bit_flipped_on_the_way_to_the_server_never_changes_a_sum(phase: str, bit: int) -> None:
    def up(found: str, site: str, message: Any) -> Any:
        if (found, site) != (phase, SITE):
            return message
        return flipped_or_lost(message, bit)

    played = play(TERMS, VECTORS, upstream=up)
    assert played.code == ""  # one site of five may fall out
    assert set(played.refused) <= {SITE}
    assert is_exact_or_none(played)


@pytest.mark.slow
@given(st.sampled_from(["share", "mask", "unmask"]), st.integers(0, 4), st.integers(0, 2**20))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_bit_flipped_on_the_way_to_a_site_never_changes_a_sum(
    phase: str, number: int, bit: int
) -> None:
    def down(found: str, site: str, request: Any) -> Any:
        if (found, site) != (phase, SITE):
            return request
        some = list(request[0])
        some[number % len(some)] = flipped_or_lost(some[number % len(some)], bit)
        return (some, *request[1:])

    played = play(TERMS, VECTORS, downstream=down)
    assert played.code == ""
    assert set(played.refused) <= {SITE}
    assert is_exact_or_none(played)


def flipped_or_lost(message: Any, bit: int) -> Any:
    """A message with one bit changed; what is no JSON any more is refused by its reader."""
    try:
        return over_the_wire(message, flip=bit)
    except ValueError:
        raise SecureSumError("Expected JSON.", code="secure-sum-message") from None


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("wrong", [None, 7, "", "no hex", "00", {}, [None], {"\ud800": "00"}])
def test_a_malformed_message_is_refused(sent: dict[str, Any], phase: str, wrong: Any) -> None:
    content = sent[phase].to_dict()
    vector = {"vector": b""} if phase == "mask" else {}
    for name in [*content]:
        if name == "site" and isinstance(wrong, str):
            continue  # any text may be a name; the roster decides
        if wrong == {} and name in {"sealed", "seeds", "keys"}:
            continue  # empty is what the others' rules decide about
        with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-message"):
            KINDS[phase].from_dict({**content, name: wrong}, **vector)
    with pytest.raises(SecureSumError, check=lambda e: e.code == "secure-sum-message"):
        KINDS[phase].from_dict([], **vector)


def test_a_delivery_is_read_as_it_was_sent(sent: dict[str, Any]) -> None:
    shares = sent["share"]
    delivery = Delivery(dealing=shares.dealing, sealed=shares.sealed[SITE])
    assert over_the_wire(delivery) == delivery
