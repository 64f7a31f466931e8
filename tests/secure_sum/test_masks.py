"""Vectors modulo 2^b, their keystreams, and what a site's masked vector looks like from outside."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medfl.secure_sum import masks
from medfl.secure_sum.agreement import new_private_key, public_half
from medfl.secure_sum.terms import MODULUS_BITS
from tests.secure_sum.rounds import make_terms, make_vectors, play

KEY = bytes(range(32))


@given(st.sampled_from(MODULUS_BITS), st.data())
def test_packed_sums_are_those_of_python_integers(bits: int, data: st.DataObject) -> None:
    half = 2 ** (bits - 1)
    integers = st.lists(st.integers(-half, half - 1), min_size=3, max_size=3)
    vectors = data.draw(st.lists(integers, min_size=1, max_size=4))
    words = masks.zero_words(3, bits=bits)
    for vector in vectors:
        packed = masks.pack(masks.to_words(np.array(vector), bits=bits), bits=bits)
        assert packed == b"".join((x % 2**bits).to_bytes(bits // 8, "little") for x in vector)
        masks.add_packed(words, packed, bits=bits)
    expected = [(sum(column) + half) % 2**bits - half for column in zip(*vectors, strict=True)]
    found = masks.to_integers(words, bits=bits)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("bits", MODULUS_BITS)
@pytest.mark.parametrize("length", [1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 + 5])
def test_the_stream_is_aes_in_counter_mode_one_word_an_integer(bits: int, length: int) -> None:
    words = masks.zero_words(length, bits=bits)
    masks.add_stream(words, KEY, sign=1)
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor()
    assert words.tobytes() == stream.update(bytes(words.nbytes))
    masks.add_stream(words, KEY, sign=-1)
    assert not words.any()


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_the_two_masks_of_a_pair_cancel(bits: int) -> None:
    one, other = new_private_key(), new_private_key()
    words = masks.zero_words(100, bits=bits)
    sides = [("a", "b", one, other), ("b", "a", other, one)]
    for site, peer, private, public in sides:
        masks.add_pair_mask(
            words, site=site, peer=peer, private=private, public=public_half(public), dealers="d"
        )
        if site == "a":
            assert words.any()
    assert not words.any()


def test_a_mask_belongs_to_its_round_pair_and_site() -> None:
    seen = {
        masks.self_mask_key(KEY, dealers=dealers, site=site)
        for dealers in ("one", "other")
        for site in ("a", "b")
    }
    assert len(seen) == 4
    private, public = new_private_key(), public_half(new_private_key())
    streams = set()
    for dealers, peer in (("one", "b"), ("other", "b"), ("one", "c")):
        words = masks.zero_words(4, bits=64)
        masks.add_pair_mask(
            words, site="a", peer=peer, private=private, public=public, dealers=dealers
        )
        streams.add(words.tobytes())
    assert len(streams) == 3


# --- what the server sees of one site


def masked_bytes(length: int, bits: int) -> tuple[bytes, np.ndarray]:
    terms = make_terms(3, length=length, modulus_bits=bits, bound=2**20)
    vectors = make_vectors(terms)
    seen: list[bytes] = []

    def keep(phase: str, site: str, message):
        if phase == "mask" and site == "site-000":
            seen.append(message.vector)
        return message

    play(terms, vectors, upstream=keep)
    return seen[0], vectors["site-000"]


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_the_bytes_of_a_masked_vector_are_uniform_and_say_nothing_of_it(bits: int) -> None:
    length = 40_000
    seen, vector = masked_bytes(length, bits)
    table = np.frombuffer(seen, dtype=np.uint8).reshape(length, bits // 8)
    for column in table.T:  # every byte of an integer by itself
        counts = np.bincount(column, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
        assert abs(np.corrcoef(column, vector)[0, 1]) < 6 / np.sqrt(length)
        assert abs(np.corrcoef(column & 1, vector & 1)[0, 1]) < 6 / np.sqrt(length)


@pytest.mark.parametrize("bits", [32, 64])
def test_two_rounds_of_the_same_vector_share_no_block(bits: int) -> None:
    runs = [masked_bytes(4000, bits)[0] for _ in range(2)]
    blocks = [{run[start : start + 16] for start in range(0, len(run), 16)} for run in runs]
    assert len(blocks[0]) == len(blocks[1]) == 4000 * bits // 128
    assert not blocks[0] & blocks[1]
