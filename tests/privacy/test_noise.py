import copy
import hashlib
import json
import logging
import math
import os
import pickle
import subprocess
import sys

import monai.utils
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from medfl.errors import PrivacyError
from medfl.privacy.noise import SecureNormal

COUNT = 300_000


def _draw(source: SecureNormal, count: int = COUNT) -> np.ndarray:
    return source.normal((count,), std=1.0, dtype=torch.float64).numpy()


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


@pytest.mark.parametrize("lag", [1, 2, 3, 4095, 4096, 4097])
def test_values_and_their_squares_are_uncorrelated(values: np.ndarray, lag: int) -> None:
    # Neighbours share a Box-Muller pair; chunks are 4096 long.
    for series in (values, (values**2 - 1) / math.sqrt(2)):
        correlation = np.mean(series[:-lag] * series[lag:])
        assert abs(correlation) < 5 / math.sqrt(COUNT - lag)


def test_noise_from_the_operating_system_has_the_asked_standard_deviation() -> None:
    noise = SecureNormal.from_operating_system().normal((3, 1000, 10), std=2.5)
    assert noise.shape == (3, 1000, 10)
    assert noise.dtype == torch.float32
    assert float(noise.std()) == pytest.approx(2.5, rel=6 / math.sqrt(2 * noise.numel()))


def test_each_value_is_half_the_sum_of_four_draws_from_four_pairs() -> None:
    # An independent scalar computation from the raw AES-CTR stream.
    key = hashlib.sha256(json.dumps(["medfl seeded stream", "oracle", 7]).encode()).digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 12))
    uniform = [
        (int.from_bytes(stream[start : start + 8], "little") >> 11) / 2**53
        for start in range(0, len(stream), 8)
    ]
    radius = [math.sqrt(-2 * math.log(1 - u)) for u in uniform[:6]]
    angle = [2 * math.pi * u for u in uniform[6:]]
    expected = [
        sum(radius[p] * math.cos(angle[p]) for p in (i, i + 3)) / 2
        + sum(radius[p] * math.sin(angle[p]) for p in ((i - 1) % 3, (i - 1) % 3 + 3)) / 2
        for i in range(3)
    ]
    drawn = SecureNormal.seeded("oracle", 7).normal((3,), std=1.0, dtype=torch.float64)
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=1e-12)


def test_uniform_values_fill_the_unit_interval() -> None:
    uniform = SecureNormal.seeded("uniform").uniform(100_000)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4096, 4097])
def test_every_length_is_filled_with_distinct_values(count: int) -> None:
    drawn = _draw(SecureNormal.seeded("length"), count)
    assert drawn.shape == (count,)
    assert len(np.unique(drawn)) == count


def test_a_scalar_shape_and_zero_std_are_allowed() -> None:
    source = SecureNormal.from_operating_system()
    assert source.normal((), std=1.0).shape == ()
    assert not source.normal((5,), std=0.0).any()


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_an_impossible_std_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="Expected a finite std"):
        SecureNormal.from_operating_system().normal((1,), std=std)


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
    first = SecureNormal.from_operating_system().normal((1000,), std=1.0)
    after_noise = torch.rand(3)
    _seed_everything()
    second = SecureNormal.from_operating_system().normal((1000,), std=1.0)
    _seed_everything()
    without_noise = torch.rand(3)
    assert not (first == second).any()
    assert abs(np.corrcoef(first.numpy(), second.numpy())[0, 1]) < 6 / math.sqrt(1000)
    assert torch.equal(after_noise, without_noise)


def test_no_two_calls_and_no_two_streams_repeat_a_value() -> None:
    sources = [SecureNormal.from_operating_system() for _ in range(4)]
    calls = [_draw(source, 5000) for source in (*sources, *sources)]
    assert len(np.unique(np.concatenate(calls))) == 8 * 5000


@pytest.mark.slow
def test_a_process_that_starts_again_makes_other_noise() -> None:
    code = (
        "import torch; torch.manual_seed(0); from medfl.privacy.noise import SecureNormal; "
        "print(SecureNormal.from_operating_system().normal((8,), std=1.0).tolist())"
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
            drawn.append(SecureNormal.seeded("site", 3).normal((20_000,), std=1.0))
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
    source.normal((10,), std=1.0)
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
            source.normal((1,), std=1.0)
        except PrivacyError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecureNormal(b"short", origin="seeded")
