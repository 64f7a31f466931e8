"""One brightness scale for whole-head and skull-stripped scans of any scanner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.data.intensity import normalise_scan

RNG = np.random.default_rng(0)
INSIDE = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0) < 8
BRAIN = np.where(INSIDE, RNG.normal(60, 6, INSIDE.shape), 0).astype(np.float32)


def test_tissue_is_one_and_air_is_zero() -> None:
    normal = normalise_scan(BRAIN)
    assert normal.dtype == np.float32
    assert np.median(normal[INSIDE]) == pytest.approx(1, abs=0.05)
    assert (normal[~INSIDE] == 0).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_noisy_air_of_a_whole_head_scan_barely_moves_the_tissue(share: float) -> None:
    noise = RNG.integers(1, 7, INSIDE.shape) * (RNG.random(INSIDE.shape) < share)
    noisy = normalise_scan(np.where(INSIDE, BRAIN, noise).astype(np.float32))
    assert np.median(noisy[INSIDE]) == pytest.approx(1, abs=0.05)
    assert noisy[~INSIDE].max() < 0.15


@given(gain=st.floats(1e-3, 1e4))
def test_the_scanner_s_gain_does_not_matter(gain: float) -> None:
    scaled = normalise_scan(BRAIN * np.float32(gain))
    assert np.allclose(scaled, normalise_scan(BRAIN), atol=1e-3)


@given(scale=st.floats(0.1, 10), centre=st.floats(0.5, 50))
def test_a_scan_that_was_centred_before_looks_as_it_did(scale: float, centre: float) -> None:
    # As BraTS 2015 comes: the mean subtracted, divided by the deviation, air a constant below 0.
    centred = (BRAIN - np.float32(centre)) / np.float32(scale)
    assert np.allclose(normalise_scan(centred), normalise_scan(BRAIN), atol=1e-3)


def test_single_hot_voxels_are_clipped_and_move_nothing_else() -> None:
    hot = BRAIN.copy()
    hot[10, 10, 10] = 1e6
    normal, expected = normalise_scan(hot), normalise_scan(BRAIN)
    assert normal.max() < 2
    others = hot != 1e6
    assert np.allclose(normal[others], expected[others], atol=0.01)


def test_contrast_within_the_head_is_kept_in_order() -> None:
    inside = BRAIN[INSIDE]
    normal = normalise_scan(BRAIN)[INSIDE]
    assert (np.diff(normal[np.argsort(inside)]) >= 0).all()


@pytest.mark.parametrize("value", [0, 7, -3])
def test_a_constant_scan_becomes_zeros(value: float) -> None:
    constant = np.full((4, 4, 4), value, np.float32)
    assert (normalise_scan(constant) == 0).all()


def test_the_scan_itself_is_not_changed() -> None:
    before = BRAIN.copy()
    normalise_scan(BRAIN)
    assert np.array_equal(BRAIN, before)
