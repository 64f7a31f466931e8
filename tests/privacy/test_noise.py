import copy
import hashlib
import itertools
import json
import logging
import math
import os
import pickle
import subprocess
import sys

import monai.utils
import mpmath
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from medfl.errors import PrivacyError
from medfl.privacy import noise
from medfl.privacy.noise import SecureNormal

COUNT = 300_000
STD = 1.5 * 2**20  # as the engine asks for


def _draw(source: SecureNormal, count: int = COUNT) -> np.ndarray:
    return source.rounded_normal((count,), std=STD).numpy() / STD


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return _draw(SecureNormal.seeded("moments", 0))


def test_moments_are_those_of_a_standard_normal(values: np.ndarray) -> None:
    # Five standard errors of mean, variance, third and fourth moment.
    for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        error = 5 * math.sqrt(variance / COUNT)
        assert np.mean(values**power) == pytest.approx(moment, abs=error)


def test_the_distribution_is_normal_into_the_tails(values: np.ndarray) -> None:
    assert stats.kstest(values, "norm").pvalue > 1e-3
    expected = 2 * stats.norm.sf(4.0) * COUNT  # 19 of 300,000
    assert np.sum(np.abs(values) > 4.0) == pytest.approx(expected, abs=5 * math.sqrt(expected))


@pytest.mark.parametrize("lag", [1, 2, 3, 2047, 2048, 2049, 4095, 4096, 4097])
def test_values_and_their_squares_are_uncorrelated(values: np.ndarray, lag: int) -> None:
    # Values 2,048 apart share a Box-Muller pair; chunks are 4,096 long.
    for series in (values, (values**2 - 1) / math.sqrt(2)):
        correlation = np.mean(series[:-lag] * series[lag:])
        assert abs(correlation) < 5 / math.sqrt(COUNT - lag)


def test_noise_from_the_operating_system_has_the_asked_standard_deviation() -> None:
    noise = SecureNormal.from_operating_system().rounded_normal((3, 1000, 10), std=2.5e5)
    assert noise.shape == (3, 1000, 10)
    assert noise.dtype == torch.int64
    found = float(noise.double().std())
    assert found == pytest.approx(2.5e5, rel=6 / math.sqrt(2 * noise.numel()))


def _pairs(key: bytes, pairs: int, *, std: float) -> tuple[list[list[int]], int]:
    """Rounded Box-Muller pairs from the raw AES-CTR stream, and how many words were not enough.

    An independent scalar computation: a pair's interval of possible values is refined until it lies
    between two neighbouring middles of integers.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    words = [int.from_bytes(stream.update(bytes(8)), "little") >> 11 for _ in range(2 * pairs)]
    found, refined = [], 0
    with mpmath.workprec(400):
        for v_word, u_word in zip(words[:pairs], words[pairs:], strict=True):
            v_hat, u_hat = mpmath.mpf(v_word + 1) / 2**53, mpmath.mpf(u_word) / 2**53
            radius = mpmath.sqrt(-2 * mpmath.log(v_hat))
            values = [
                std * radius * turn(2 * mpmath.pi * u_hat) for turn in (mpmath.cos, mpmath.sin)
            ]
            distance = max(abs(value - mpmath.nint(value)) for value in values)
            if distance > 0.5 - 2.0**-14 or v_hat * radius < 2.0**-16:
                refined += 1
                more_v, more_u = (
                    int.from_bytes(stream.update(bytes(16)), "little") for _ in range(2)
                )
                v = mpmath.mpf((v_word << 128) + more_v + 1) / 2**181
                u = mpmath.mpf((u_word << 128) + more_u) / 2**181
                radius = mpmath.sqrt(-2 * mpmath.log(v))
                values = [
                    std * radius * turn(2 * mpmath.pi * u) for turn in (mpmath.cos, mpmath.sin)
                ]
            found.append([int(mpmath.nint(value)) for value in values])
    return found, refined


def test_every_integer_is_the_one_that_an_arithmetic_of_400_bits_finds() -> None:
    pairs, refined = 2048, 0
    for number in range(20):
        key = hashlib.sha256(b"an oracle, number %d" % number).digest()
        found = SecureNormal(key, origin="seeded").rounded_normal((2 * pairs,), std=2.0**21)
        expected, refined = _pairs(key, pairs, std=2.0**21)
        assert found.reshape(2, pairs).T.tolist() == expected
        if refined:  # one pair in some 4,000
            return
    pytest.fail("no pair in doubt")


def test_a_value_in_doubt_is_decided_by_further_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything in doubt the law stays the same, and nearly every value the same integer."""
    plain = SecureNormal.seeded("doubt").rounded_normal((4096,), std=STD)
    monkeypatch.setattr(noise, "_DOUBTFUL_DISTANCE", 0.6)
    exact = SecureNormal.seeded("doubt").rounded_normal((4096,), std=STD)
    # Only the bits of one chunk are the same: doubt draws further ones.
    assert (plain - exact).abs().max() <= 1
    assert (plain != exact).sum() < 8


@pytest.mark.parametrize(("v_word", "u_word"), [(0, 0), (2**53 - 1, 0), (2**53 - 1, 2**51), (0, 7)])
def test_extreme_words_give_finite_integers(v_word: int, u_word: int) -> None:
    pair = SecureNormal.seeded("extreme")._exact_pair(v_word, u_word, std=STD)
    # The first 53 bits put v below 2^-53 or above 1 - 2^-53.
    largest = math.sqrt(2 * 181 * math.log(2)) * STD
    assert all(abs(value) <= largest for value in pair)
    if v_word == 0:
        assert math.hypot(*pair) > math.sqrt(2 * 53 * math.log(2)) * STD - 2
    else:
        assert math.hypot(*pair) < 2.0**-26 * STD + 2


def test_small_deviations_give_the_exact_probabilities_of_a_rounded_normal() -> None:
    std, count = 0.6, 200_000
    found = SecureNormal.seeded("small").rounded_normal((count,), std=std).numpy()
    for value in range(-2, 3):
        expected = stats.norm.cdf((value + 0.5) / std) - stats.norm.cdf((value - 0.5) / std)
        error = 5 * math.sqrt(expected * (1 - expected) / count)
        assert np.mean(found == value) == pytest.approx(expected, abs=error)


def test_low_bits_of_the_integers_are_fair_coins() -> None:
    found = SecureNormal.seeded("bits").rounded_normal((COUNT,), std=STD).numpy()
    for bit in range(12):
        share = np.mean((found >> bit) & 1)
        assert share == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(COUNT))


def test_uniform_values_fill_the_unit_interval() -> None:
    uniform = SecureNormal.seeded("uniform").uniform(100_000)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4096, 4097])
def test_every_length_is_filled(count: int) -> None:
    drawn = _draw(SecureNormal.seeded("length"), count)
    assert drawn.shape == (count,)
    # Two of 4,097 values meet on one of some millions of integers now and then.
    assert len(np.unique(drawn)) >= count - 20


def test_a_scalar_shape_and_zero_std_are_allowed() -> None:
    source = SecureNormal.from_operating_system()
    assert source.rounded_normal((), std=1.0).shape == ()
    assert not source.rounded_normal((5,), std=0.0).any()


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf, 2.0**21 + 1])
def test_an_impossible_std_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="Expected a finite std"):
        SecureNormal.from_operating_system().rounded_normal((1,), std=std)


def _seed_everything() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    monai.utils.set_determinism(0)


@pytest.fixture
def _undo_determinism():
    yield
    monai.utils.set_determinism(None)


@pytest.mark.usefixtures("_undo_determinism")
def test_global_seeds_neither_repeat_the_noise_nor_are_used_up_by_it() -> None:
    _seed_everything()
    first = SecureNormal.from_operating_system().rounded_normal((1000,), std=STD)
    after_noise = torch.rand(3)
    _seed_everything()
    second = SecureNormal.from_operating_system().rounded_normal((1000,), std=STD)
    _seed_everything()
    without_noise = torch.rand(3)
    assert (first == second).sum() <= 2
    assert abs(np.corrcoef(first.numpy(), second.numpy())[0, 1]) < 6 / math.sqrt(1000)
    assert torch.equal(after_noise, without_noise)


def test_no_two_calls_and_no_two_streams_repeat_each_other() -> None:
    sources = [SecureNormal.from_operating_system() for _ in range(4)]
    calls = [_draw(source, 5000) for source in (*sources, *sources)]
    table = np.corrcoef(calls) - np.eye(8)
    assert np.abs(table).max() < 6 / math.sqrt(5000)
    assert all(np.mean(one == other) < 1e-3 for one, other in itertools.combinations(calls, 2))


@pytest.mark.slow
def test_a_process_that_starts_again_makes_other_noise() -> None:
    code = (
        "import torch; torch.manual_seed(0); from medfl.privacy.noise import SecureNormal; "
        "print(SecureNormal.from_operating_system().rounded_normal((8,), std=2.0**21).tolist())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    first, second = (set(json.loads(run.stdout)) for run in runs)
    assert len(first) == len(second) == 8
    assert not first & second


def test_a_seeded_stream_is_the_same_at_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            drawn.append(SecureNormal.seeded("site", 3).rounded_normal((20_000,), std=STD))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("other", [("a", 2), ("a", "1"), ("a1",), ("a", 1, ""), ("a", 1, 0)])
def test_seeded_streams_with_other_parts_are_unrelated(other: tuple[str | int, ...]) -> None:
    one, two = (_draw(SecureNormal.seeded(*parts), 10_000) for parts in (("a", 1), other))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(10_000)


def test_the_origin_tells_seeded_from_real_noise() -> None:
    assert SecureNormal.from_operating_system().origin == "operating-system"
    assert SecureNormal.seeded(1).origin == "seeded"


def test_nothing_about_the_key_is_shown_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source = SecureNormal(b"K" * 32, origin="operating-system")
    source.rounded_normal((10,), std=1.0)
    assert repr(source) == str(source) == "SecureNormal(origin='operating-system')"
    assert not hasattr(source, "__dict__")
    assert not any(isinstance(getattr(source, name), bytes) for name in source.__slots__)
    assert caplog.records == []


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stream_cannot_be_duplicated(duplicate) -> None:
    with pytest.raises(PrivacyError, match="repeat the same noise"):
        duplicate(SecureNormal.from_operating_system())


def test_a_forked_process_cannot_repeat_the_noise() -> None:
    source = SecureNormal.from_operating_system()
    child = os.fork()
    if child == 0:
        try:
            source.rounded_normal((1,), std=1.0)
        except PrivacyError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecureNormal(b"short", origin="seeded")
