"""`HeadGrid`: where every voxel lies in the head, and smooth noise over it.

Anatomy is drawn in the millimetres of one average adult head. The grid maps voxels to them: it
fits the head into the field of view, tilts it a little, and so lets the same anatomy fill any
shape and spacing, thick slices included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float32]

# What has to fit into the field of view, in mm: width, length, height.
BRAIN_EXTENT = (142.0, 178.0, 146.0)
HEAD_EXTENT = (166.0, 208.0, 164.0)
# Middle of that extent in head millimetres; the origin is the centre of the brain.
BRAIN_MIDDLE = (0.0, 0.0, 2.0)
HEAD_MIDDLE = (0.0, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class HeadGrid:
    """Voxels of one scan, placed in the head.

    Attributes:
        points: Right, anterior and superior coordinate of every voxel, in head millimetres; float32
            (3, D, H, W), where D, H, W are the voxels along the scan's right, anterior, superior.
        step: Size of a voxel along each axis, in head millimetres.
    """

    points: FloatArray
    step: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        _, right, anterior, superior = self.points.shape
        return right, anterior, superior

    def smooth_field(self, *, wavelength: float, rng: np.random.Generator) -> FloatArray:
        """Gaussian noise without structure below `wavelength`, of about unit variance.

        Knots of independent noise are joined by cubic B-splines, one axis after the other.

        Args:
            wavelength: Head millimetres; two knots each.
            rng: Source of the knots.

        Returns:
            float32 (D, H, W).
        """
        weights = [
            _spline_weights(size, step, knot_distance=wavelength / 2)
            for size, step in zip(self.shape, self.step, strict=True)
        ]
        field = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
        for weight in weights:
            # Contracting the first axis puts its voxels last: three times gives the order back.
            field = np.tensordot(field, weight, axes=(0, 1))
        return np.asarray(field, np.float32)


def place_head(
    *,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    whole_head: bool,
    rng: np.random.Generator,
) -> HeadGrid:
    """Put a head of random size and tilt into the field of view.

    Args:
        shape: Voxels along right, anterior, superior.
        spacing: Millimetres per voxel.
        whole_head: Leave room for skull and scalp rather than for the brain alone.
        rng: Source of size, tilt and offset.
    """
    extent, middle = (HEAD_EXTENT, HEAD_MIDDLE) if whole_head else (BRAIN_EXTENT, BRAIN_MIDDLE)
    size = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    if whole_head:
        # Gaps between slices are often unrecorded, and then heads come out flat.
        size[2] *= rng.uniform(0.85, 1)
    view = np.array(shape) * np.array(spacing)
    # A field of view that is too small along an axis shrinks the head along that axis.
    scale = np.minimum(size, view / extent)
    slack = np.maximum(view - extent * scale, 0) / 2
    offset = rng.uniform(-0.3, 0.3, 3) * np.minimum(slack, 15)
    if whole_head:
        # Scans of the head end just above the vertex; what is left over shows face and neck.
        offset[2] += slack[2] * rng.uniform(0.5, 0.9)
    axes = [
        ((np.arange(n) - (n - 1) / 2) * step - shift) / factor + centre
        for n, step, shift, factor, centre in zip(
            shape, spacing, offset, scale, middle, strict=True
        )
    ]
    point = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    tilt = _rotation(rng.normal(0, np.deg2rad([5, 3, 4]))).astype(np.float32)
    step = np.array(spacing) / scale
    return HeadGrid(
        points=(tilt @ point.reshape(3, -1)).reshape(point.shape),
        step=(float(step[0]), float(step[1]), float(step[2])),
    )


class NoiseLattice:
    """Noise at arbitrary points: for patterns that follow curved coordinates.

    Args:
        sigma: Head millimetres of the Gaussian smoothing. Zero crossings of the field lie
            4.4 sigma apart on average (Rice's formula).
        rng: Source of the noise.
    """

    half_width = 120.0

    def __init__(self, *, sigma: float, rng: np.random.Generator) -> None:
        self._step = sigma / 1.2
        count = int(np.ceil(2 * self.half_width / self._step)) + 1
        noise = rng.standard_normal((count, count, count), dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, 1.2, mode="wrap", truncate=3)
        self._noise = noise / noise.std()

    def at(self, points: FloatArray) -> FloatArray:
        """Noise of unit variance at points of shape (3, N), in head millimetres."""
        index = (points + np.float32(self.half_width)) / np.float32(self._step)
        values: FloatArray = ndimage.map_coordinates(self._noise, index, order=1, mode="nearest")
        return values


def _spline_weights(size: int, step: float, *, knot_distance: float) -> FloatArray:
    """Cubic B-spline weight of every knot at every voxel of one axis, of unit root sum square."""
    position = np.arange(size) * step / knot_distance
    knots = np.arange(-1, int(np.ceil(position[-1])) + 3)
    distance = np.abs(position[:, None] - knots[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weight = np.where(distance < 1, near, far)
    return np.asarray(weight / np.linalg.norm(weight, axis=1, keepdims=True), np.float32)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation by pitch, roll and yaw, in radians."""
    (cp, cr, cy), (sp, sr, sy) = np.cos(angles), np.sin(angles)
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    product: NDArray[np.float64] = pitch @ roll @ yaw
    return product
