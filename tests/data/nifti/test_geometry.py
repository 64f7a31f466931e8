"""Distances between transforms, against every voxel moved one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.data.nifti.geometry import corners_apart, shear_degrees

SHAPE = (240, 240, 155)


def turned(degrees: float) -> np.ndarray:
    """1 mm voxels turned around the third axis."""
    affine = np.eye(4)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    affine[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return affine


@pytest.mark.parametrize("degrees", [0.5, 15.0, 29.0])
def test_a_turn_is_told_by_the_chord_that_the_far_corner_moves_along(degrees: float) -> None:
    radius = math.hypot(SHAPE[0] - 1, SHAPE[1] - 1)
    chord = 2 * radius * math.sin(math.radians(degrees) / 2)
    found = corners_apart(np.eye(4), turned(degrees), shape=SHAPE)
    assert found == pytest.approx(chord, rel=1e-12)
    # What an element of the matrix says of the same turn.
    assert np.abs(turned(degrees) - np.eye(4)).max() < 0.5


def test_voxels_that_are_a_hundredth_too_large_end_millimetres_away() -> None:
    larger = np.diag([1.0099, 1.0099, 1.0099, 1.0])
    diagonal = math.dist((0, 0, 0), [size - 1 for size in SHAPE])
    assert corners_apart(np.eye(4), larger, shape=SHAPE) == pytest.approx(0.0099 * diagonal)


elements = st.floats(-2, 2)


@given(st.lists(elements, min_size=12, max_size=12), st.lists(elements, min_size=12, max_size=12))
def test_no_voxel_is_further_apart_than_a_corner(first: list[float], second: list[float]) -> None:
    shape = (3, 4, 2)
    affines = [np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]]) for rows in (first, second)]
    voxels = np.array([(*v, 1) for v in itertools.product(*map(range, shape))], dtype=float)
    apart = [np.linalg.norm((a @ voxel - b @ voxel)[:3]) for voxel in voxels for a, b in [affines]]
    assert corners_apart(*affines, shape=shape) == pytest.approx(max(apart), abs=1e-12)


@pytest.mark.parametrize("degrees", [0.0, 0.5, 3.0, 20.0])
def test_shear_is_told_in_degrees_whatever_the_turn_and_the_voxel_sizes(degrees: float) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = math.tan(math.radians(degrees))
    affine = turned(33.0) @ sheared @ np.diag([0.9, 1.0, 2.5, 1.0])
    assert shear_degrees(affine) == pytest.approx(degrees, abs=1e-6)
