from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.secure_sum.agreement import agreed_key, is_usable, new_private_key, public_half
from medfl.secure_sum.binding import digest, encode
from medfl.secure_sum.sealing import SEALED_BYTES, purpose_of, seal, unseal
from medfl.signatures import is_signed
from tests.secure_sum.rounds import public_key, sign_as

DEALER, HOLDER = new_private_key(), new_private_key()
PURPOSE = purpose_of(adverts="a" * 64, dealer="a", holder="b")
SHARES = (bytes(range(33)), bytes(range(33, 66)))
SEALED = seal(SHARES, private=DEALER, public=public_half(HOLDER), purpose=PURPOSE)


def test_the_holder_opens_what_the_dealer_sealed() -> None:
    assert len(SEALED) == SEALED_BYTES
    found = unseal(SEALED, private=HOLDER, public=public_half(DEALER), purpose=PURPOSE)
    assert found == SHARES
    assert not any(share in SEALED for share in SHARES)
    again = seal(SHARES, private=DEALER, public=public_half(HOLDER), purpose=PURPOSE)
    assert again != SEALED


@given(st.integers(0, 8 * SEALED_BYTES - 1))
def test_one_flipped_bit_is_noticed(bit: int) -> None:
    spoilt = (int.from_bytes(SEALED) ^ 1 << bit).to_bytes(SEALED_BYTES)
    with pytest.raises(ValueError, match="sealed for this site"):
        unseal(spoilt, private=HOLDER, public=public_half(DEALER), purpose=PURPOSE)


@pytest.mark.parametrize(
    "purpose",
    [
        purpose_of(adverts="a" * 64, dealer="b", holder="a"),
        purpose_of(adverts="b" * 64, dealer="a", holder="b"),
        purpose_of(adverts="a" * 64, dealer="ab", holder=""),
    ],
)
def test_shares_open_for_their_round_and_pair_only(purpose: bytes) -> None:
    with pytest.raises(ValueError, match="sealed for this site"):
        unseal(SEALED, private=HOLDER, public=public_half(DEALER), purpose=purpose)
    with pytest.raises(ValueError, match="sealed for this site"):
        unseal(SEALED, private=new_private_key(), public=public_half(DEALER), purpose=PURPOSE)


@pytest.mark.parametrize("content", [b"", b"short", bytes(SEALED_BYTES)])
def test_garbage_does_not_open(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        unseal(content, private=HOLDER, public=public_half(DEALER), purpose=PURPOSE)


def test_points_of_low_order_are_no_keys() -> None:
    low = [bytes(32), b"\x01" + bytes(31), (2**255 - 19 - 1).to_bytes(32, "little")]
    assert [is_usable(public) for public in (*low, b"short", public_half(DEALER))] == [
        *[False] * 4,
        True,
    ]


def test_an_agreed_key_is_the_same_on_both_sides_and_for_one_purpose() -> None:
    one = agreed_key(DEALER, public_half(HOLDER), purpose=b"one")
    assert agreed_key(HOLDER, public_half(DEALER), purpose=b"one") == one
    assert agreed_key(HOLDER, public_half(DEALER), purpose=b"other") != one


def test_an_encoding_can_be_read_in_one_way_only() -> None:
    different = [
        encode("p", "a", "b"),
        encode("p", "ab"),
        encode("p", "ab", ""),
        encode("p", b"ab"),
        encode("p", "1"),
        encode("p", 1),
        encode("pa", "b"),
        encode("p", encode("p", "a", "b")),
    ]
    assert len(set(different)) == len(different)
    assert len(digest("p", "a")) == 64


def test_a_signature_holds_for_its_content_and_key() -> None:
    signature = sign_as("a")(b"content")
    assert is_signed(b"content", signature=signature, event_key=public_key("a"))
    assert not is_signed(b"content", signature=signature, event_key=public_key("b"))
    assert not is_signed(b"other", signature=signature, event_key=public_key("a"))
    for spoilt in ("", "no hex", signature[:-2]):
        assert not is_signed(b"content", signature=spoilt, event_key=public_key("a"))
