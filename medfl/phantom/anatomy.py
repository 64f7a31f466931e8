"""`Head`: which tissue fills each voxel of a healthy head.

Shapes are distance-like fields in head millimetres: ellipsoids and capsules, roughened by noise.
Sulci are sheets where a noise field crosses zero; the field varies along the surface rather than
across it, so that they run inwards as real ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from medfl.phantom.grid import FloatArray, HeadGrid, NoiseLattice

Point = tuple[float, float, float]
BoolArray = NDArray[np.bool_]


class Tissue(IntEnum):
    """What a voxel is made of; the lesion's parts are told apart by their signal."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    MARROW = 4
    DURA = 5
    EYE = 6
    CSF = 7
    GREY = 8
    DEEP_GREY = 9
    WHITE = 10
    AGED_WHITE = 11
    OEDEMA = 12
    SOLID = 13
    ENHANCING = 14
    NECROSIS = 15
    CYST = 16


@dataclass(frozen=True, kw_only=True)
class Head:
    """A healthy head.

    Attributes:
        tissue: `Tissue` codes, uint8 (D, H, W).
        brain: Brain with its sulci and ventricles.
        parenchyma: Where a lesion may grow: brain without ventricles and midline.
    """

    tissue: NDArray[np.uint8]
    brain: BoolArray
    parenchyma: BoolArray


def build_head(
    grid: HeadGrid, *, push: Callable[[FloatArray], FloatArray], rng: np.random.Generator
) -> Head:
    """Draw one head.

    Args:
        grid: Where the voxels are.
        push: Mass effect: takes the points (3, ...) of the scan to where their tissue was before
            the tumour grew.
        rng: Source of everything individual.
    """
    rough = grid.smooth_field(wavelength=60, rng=rng) * np.float32(1.5)
    outside = _brain_surface(grid.points) + rough
    brain = outside < 0
    tissue = _shell(grid, outside, rough, rng)
    inside_point = push(grid.points[:, brain])
    inside, ventricle = _inside(inside_point, outside[brain], max(grid.step[:2]), rng)
    tissue[brain] = inside
    parenchyma = brain.copy()
    parenchyma[brain] = ~ventricle & (np.abs(inside_point[0]) > 2)
    return Head(tissue=tissue, brain=brain, parenchyma=parenchyma)


def ellipsoid(point: FloatArray, centre: Point, radii: Point) -> FloatArray:
    """About the signed distance to an ellipsoid's surface, negative inside, in millimetres."""
    square = np.zeros_like(point[0])
    for axis in range(3):
        square += ((point[axis] - np.float32(centre[axis])) / np.float32(radii[axis])) ** 2
    distance: FloatArray = (np.sqrt(square) - 1) * np.float32(min(radii))
    return distance


def capsule(point: FloatArray, start: Point, end: Point, radius: float) -> FloatArray:
    """Signed distance to a rod with round ends, in millimetres."""
    rod = np.array(end, np.float32) - np.array(start, np.float32)
    offset = [point[axis] - np.float32(start[axis]) for axis in range(3)]
    along = np.zeros_like(point[0])
    for axis in range(3):
        along += offset[axis] * (rod[axis] / (rod @ rod))
    along = np.clip(along, 0, 1)
    square = np.zeros_like(along)
    for axis in range(3):
        square += (offset[axis] - along * rod[axis]) ** 2
    distance: FloatArray = np.sqrt(square) - np.float32(radius)
    return distance


def _union(fields: Sequence[FloatArray]) -> FloatArray:
    nearest: FloatArray = np.minimum.reduce(fields)
    return nearest


def _smooth_union(fields: Sequence[FloatArray]) -> FloatArray:
    """Like `_union`, with creases rounded over about 3 mm."""
    rounding = np.float32(3)
    nearest = _union(fields)
    excess = np.exp((nearest - np.stack(fields)) / rounding).sum(axis=0)
    rounded: FloatArray = nearest - rounding * np.log(excess)
    return rounded


def _mirrored(point: FloatArray) -> FloatArray:
    return np.stack([np.abs(point[0]), point[1], point[2]])


def _brain_surface(point: FloatArray) -> FloatArray:
    half = _mirrored(point)
    upper = ellipsoid(half, (0, 0, 12), (66, 84, 60))
    lower = ellipsoid(half, (0, 0, 12), (66, 84, 36))
    cerebrum = np.where(point[2] > 12, upper, lower)
    temporal = ellipsoid(half, (37, -4, -16), (27, 42, 28))
    return _smooth_union([cerebrum, temporal, _cerebellum(half), _brainstem(point)])


def _cerebellum(half: FloatArray) -> FloatArray:
    return ellipsoid(half, (17, -50, -40), (36, 29, 25))


def _brainstem(point: FloatArray) -> FloatArray:
    pons = ellipsoid(point, (0, -17, -28), (16, 13, 19))
    cord = capsule(point, (0, -22, -40), (0, -30, -62), 7.5)
    return np.minimum(pons, cord)


def _shell(
    grid: HeadGrid, outside: FloatArray, rough: FloatArray, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Everything around the brain, from the air inwards to the fluid under the skull."""
    point = grid.points
    skin = _skin(point) + rough
    tissue = np.full(grid.shape, Tissue.AIR, np.uint8)
    head = skin < 0
    clutter = NoiseLattice(sigma=3.5, rng=rng).at(_mirrored(point[:, head]))
    tissue[head] = _soft_tissue(point[:, head], clutter)
    fluid = rng.uniform(1, 3.5)
    bone = rng.uniform(5, 8)
    beyond = outside - np.float32(fluid)
    tissue[head & (beyond < bone)] = Tissue.BONE
    tissue[head & (np.abs(beyond - bone / 2) < bone / 6)] = Tissue.MARROW
    scalp = rng.uniform(3.5, 7.5) + np.float32(0.7) * grid.smooth_field(wavelength=50, rng=rng)
    # Where skull and scalp compete for space, a thin skull remains.
    tissue[head & (skin > -scalp) & (beyond > 2)] = Tissue.FAT
    # The skin itself is a thin, darker line around the fat.
    tissue[head & (skin > -1)] = Tissue.MUSCLE
    tissue[head & (beyond < 0)] = Tissue.CSF
    tissue[head & (np.abs(beyond) < 0.4)] = Tissue.DURA
    return tissue


def _skin(point: FloatArray) -> FloatArray:
    upper = ellipsoid(point, (0, 0, 10), (78, 97, 76))
    lower = ellipsoid(point, (0, 0, 10), (78, 97, 110))
    cranium = np.where(point[2] > 10, upper, lower)
    face = ellipsoid(point, (0, 45, -60), (62, 56, 70))
    nose = ellipsoid(point, (0, 96, -62), (14, 20, 24))
    neck = capsule(point, (0, -25, -60), (0, -35, -200), 56)
    return _union([cranium, face, nose, neck])


def _soft_tissue(point: FloatArray, clutter: FloatArray) -> NDArray[np.uint8]:
    """Face, skull base and neck: patches of muscle, fat, bone and air, with two eyes."""
    tissue = np.full(clutter.shape, Tissue.MUSCLE, np.uint8)
    tissue[clutter > 0.6] = Tissue.FAT
    tissue[clutter < -0.6] = Tissue.BONE
    half = _mirrored(point)
    sinus = (half[0] < 34) & (point[1] > 25) & (point[2] < -25)
    tissue[sinus & (clutter < 0.1)] = Tissue.AIR
    tissue[ellipsoid(half, (31, 64, -34), (15, 24, 15)) < 0] = Tissue.FAT
    tissue[ellipsoid(half, (31, 74, -34), (12.5, 12.5, 12.5)) < 0] = Tissue.MUSCLE
    tissue[ellipsoid(half, (31, 74, -34), (11.5, 11.5, 11.5)) < 0] = Tissue.EYE
    return tissue


def _inside(
    point: FloatArray, outside: FloatArray, step: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], BoolArray]:
    """Tissue of the brain's voxels, and which of them are ventricle."""
    half = _mirrored(point)
    depth = -outside
    hind = np.minimum(_cerebellum(half), _brainstem(point)) < 0
    sheet = _sulcal_distance(point, depth, hind, rng)
    tissue = np.full(depth.shape, Tissue.WHITE, np.uint8)
    width = np.where(hind, np.float32(0.15), np.float32(rng.uniform(0.2, 0.9)))
    cortex = np.where(hind, np.float32(0.6), np.float32(rng.uniform(2.2, 3.0)))
    tissue[(sheet < width + cortex) | (depth < cortex)] = Tissue.GREY
    tissue[(sheet < width) | (depth < 0.5)] = Tissue.CSF
    stem = _brainstem(point) < -1
    tissue[stem] = Tissue.WHITE
    tissue[_deep_grey(half) < 0] = Tissue.DEEP_GREY
    _draw_fissure(tissue, point, hind, step)
    tissue[ellipsoid(half, (52, 10, -1), (18, 26, 1.8)) < 0] = Tissue.CSF
    to_ventricle = _ventricles(half, swelling=rng.uniform(-1.5, 3))
    # White matter ages around the ventricles: bright in FLAIR as oedema is, and no tumour.
    patches = NoiseLattice(sigma=6, rng=rng).at(point)
    aged = to_ventricle < rng.uniform(-3, 3) + 2 * patches
    tissue[aged & (tissue == Tissue.WHITE)] = Tissue.AGED_WHITE
    ventricle = to_ventricle < 0
    tissue[ventricle] = Tissue.CSF
    return tissue, ventricle


def _draw_fissure(
    tissue: NDArray[np.uint8], point: FloatArray, hind: BoolArray, step: float
) -> None:
    """The cleft between the hemispheres, with the falx in it."""
    callosum = ellipsoid(point, (0, -6, 2), (30, 46, 24)) < 0
    off = np.where(callosum | hind, np.float32(99), np.abs(point[0]))
    # Half a voxel at least, or the sheets break into dots.
    falx = max(0.6, step / 2)
    tissue[off < falx + 3.5] = Tissue.GREY
    tissue[off < falx + 1] = Tissue.CSF
    tissue[off < falx] = Tissue.DURA


def _sulcal_distance(
    point: FloatArray, depth: FloatArray, hind: BoolArray, rng: np.random.Generator
) -> FloatArray:
    """About the distance to the nearest sulcus, in millimetres."""
    centre = np.array([[0], [0], [5]], np.float32)
    ray = point - centre
    length = np.maximum(np.linalg.norm(ray, axis=0), np.float32(1))
    # Compressing the radius turns noise into sheets that run inwards.
    curved = ray * (np.float32(70) / length) ** np.float32(0.5) + centre
    sigma = 3.2
    noise = NoiseLattice(sigma=sigma, rng=rng).at(curved)
    folia = np.sin((point[2] + np.float32(0.5) * point[1] + 1.5 * noise) * np.float32(0.9))
    # Mean gradient of Gaussian noise smoothed by sigma: 1.6 / (sqrt(2) sigma) per millimetre.
    across = np.abs(np.where(hind, folia, noise * np.float32(np.sqrt(2) * sigma / 1.6)))
    # Sulci reach 8 to 28 mm inwards, differently from place to place.
    reach = NoiseLattice(sigma=12, rng=rng).at(curved)
    floor = np.float32(rng.uniform(15, 23)) + np.float32(5) * reach
    distance: FloatArray = np.hypot(across, np.maximum(depth - floor, 0))
    return distance


def _deep_grey(half: FloatArray) -> FloatArray:
    thalamus = ellipsoid(half, (11, -12, 4), (8, 14, 9))
    lentiform = ellipsoid(half, (25, 6, 2), (6, 17, 10))
    caudate = ellipsoid(half, (13, 22, 6), (5, 11, 9))
    return _union([thalamus, lentiform, caudate])


def _ventricles(half: FloatArray, *, swelling: float) -> FloatArray:
    lateral = [
        capsule(half, (8, 32, 6), (9, 5, 19), 4.5 + swelling),
        capsule(half, (9, 5, 19), (22, -36, 12), 5 + swelling),
        capsule(half, (22, -36, 12), (24, -56, 8), 4 + swelling),
        capsule(half, (24, -34, 6), (33, -6, -16), 2 + swelling / 2),
    ]
    third = ellipsoid(half, (0, -4, 0), (2 + max(swelling, 0) / 2, 14, 10))
    fourth = ellipsoid(half, (0, -33, -36), (6, 5, 9))
    return _union([*lateral, third, fourth])
