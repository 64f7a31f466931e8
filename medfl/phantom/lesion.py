"""`Lesion`: a tumour of irregular shape, its parts, and how it displaces the brain.

Parts are level sets of noise-warped ellipsoid distances, cut by rank, so that volumes are what was
asked for on every grid and no part of an enhancing tumour is empty while the lesion has voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfl.config.synthetic import Variety
from medfl.phantom.anatomy import Head, Point, Tissue
from medfl.phantom.grid import FloatArray, HeadGrid

Grade = Literal["enhancing", "patchy", "low"]

# Label values of BraTS 2018 to 2021.
NECROSIS_LABEL, OEDEMA_LABEL, ENHANCING_LABEL = 1, 2, 4
# Typical middles of lobes on the right: frontal (twice as common), parietal, temporal, occipital.
LOBES: tuple[Point, ...] = (
    (30, 45, 22), (28, 30, 42), (32, -22, 42), (42, 2, -16), (38, -14, -8), (26, -55, 14),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Ranges:
    """How tumours may differ.

    Attributes:
        largest: Largest share of the brain's volume.
        cystic: Probability of a cyst in an enhancing tumour.
        grey_penalty: How strictly oedema may keep to white matter, at most.
        inside: How far the middle of a fading border may lie within the mask, in its own widths:
            who draws masks by hand draws them around what is still visible.
        contrast_spread: Standard deviation of the logarithm of the parts' contrasts.
    """

    largest: float
    cystic: float
    grey_penalty: float
    inside: float
    contrast_spread: float


_RANGES: Mapping[Variety, _Ranges] = {
    "narrow": _Ranges(largest=0.08, cystic=0.0, grey_penalty=0.2, inside=0.0, contrast_spread=0.1),
    "wide": _Ranges(largest=0.16, cystic=0.2, grey_penalty=0.6, inside=1.0, contrast_spread=0.25),
    "random": _Ranges(largest=0.2, cystic=0.3, grey_penalty=0.8, inside=1.0, contrast_spread=0.35),
}
_SMALLEST = 0.01


@dataclass(frozen=True, kw_only=True)
class LesionPlan:
    """Where a tumour grows and how.

    Attributes:
        centre: Head millimetres.
        fraction: Share of the brain's volume.
        core: Share of the lesion inside the oedema.
        necrosis: Share of the core that is necrotic or cystic.
        stretch: Columns are the lesion's axes, scaled.
        pressure: Mass effect, 0 for none, below 1.
        ranges: What else differs.
    """

    centre: Point
    fraction: float
    grade: Grade
    core: float
    necrosis: float
    cystic: bool
    stretch: NDArray[np.float32]
    pressure: float
    ranges: _Ranges

    @property
    def radius(self) -> float:
        """Head millimetres of a ball of the lesion's volume, in a brain of 1.4 litres."""
        return float((self.fraction * 1.4e6 * 3 / (4 * np.pi)) ** (1 / 3))

    def push(self, point: FloatArray) -> FloatArray:
        """Points (3, N) of the scan, taken to where their tissue was before the tumour grew."""
        centre = np.array(self.centre, np.float32)[:, None]
        ray = point - centre
        reach = np.float32(1.4 * self.radius)
        pull = np.float32(self.pressure) * np.exp(-((ray / reach) ** 2).sum(axis=0))
        healthy: FloatArray = centre + ray * (1 - pull)
        return healthy


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A tumour on its grid.

    Attributes:
        labels: 0, 1, 2 and 4 as BraTS 2021 writes them, uint8 (D, H, W).
        tissue: `Tissue` codes of the lesion's voxels and of the fringe around them.
        share: How much of a voxel's signal comes from the lesion, 0 to 1.
        contrast_spread: Standard deviation of the logarithm of the parts' contrasts.
    """

    labels: NDArray[np.uint8]
    tissue: NDArray[np.uint8]
    share: FloatArray
    contrast_spread: float


def plan_lesion(rng: np.random.Generator, *, variety: Variety) -> LesionPlan:
    """Choose place, size and kind of a tumour."""
    ranges = _RANGES[variety]
    lobe = np.array(LOBES[rng.integers(len(LOBES))]) + rng.normal(0, 7, 3)
    side = rng.choice([-1, 1])
    grades: tuple[Grade, ...] = ("enhancing", "patchy", "low")
    grade = grades[rng.choice(3, p=[0.5, 0.15, 0.35])]
    axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    ratio = np.exp(np.clip(rng.normal(0, 0.17, 3), -0.35, 0.35))
    return LesionPlan(
        centre=(float(side * max(lobe[0], 12)), float(lobe[1]), float(lobe[2])),
        fraction=_fraction(ranges, variety, rng),
        grade=grade,
        core=float(rng.uniform(0.25, 0.6) if grade == "enhancing" else rng.uniform(0.4, 0.75)),
        necrosis=float(rng.uniform(0.2, 0.65) if grade == "enhancing" else rng.uniform(0.15, 0.4)),
        cystic=_cystic(grade, ranges, rng),
        stretch=(axes / (ratio / np.cbrt(ratio.prod()))).astype(np.float32),
        pressure=float(rng.uniform(0, 0.55)),
        ranges=ranges,
    )


def _fraction(ranges: _Ranges, variety: Variety, rng: np.random.Generator) -> float:
    """Share of the brain; where very large tumours occur, small ones stay as common."""
    if variety == "narrow":
        return float(rng.uniform(_SMALLEST, ranges.largest))
    return float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(ranges.largest))))


def _cystic(grade: Grade, ranges: _Ranges, rng: np.random.Generator) -> bool:
    probability = ranges.cystic if grade == "enhancing" else 0.3
    return probability > 0 and bool(rng.random() < probability)


def grow_lesion(
    grid: HeadGrid, head: Head, plan: LesionPlan, *, rng: np.random.Generator
) -> Lesion:
    """Fill the planned lesion into a head.

    Args:
        grid: Where the voxels are.
        head: Anatomy, already displaced by `plan.push`.
        plan: Place, size and kind.
        rng: Source of the irregular borders.
    """
    allowed = head.parenchyma
    outer, inner = _levels(grid, plan, rng)
    # Oedema follows white matter; how strictly differs from patient to patient.
    outer += np.float32(rng.uniform(0, plan.ranges.grey_penalty)) * (head.tissue != Tissue.WHITE)
    outer = np.where(allowed & _same_side(grid, plan), outer, np.float32(np.inf))
    count = max(int(plan.fraction * np.count_nonzero(head.brain)), 8)
    border = float(np.partition(outer.ravel(), count - 1)[count - 1])
    outer = _without_islands(outer, border)
    lesion = outer <= border
    core = _lowest(inner, lesion, plan.core)
    middle = _lowest(inner, core, plan.necrosis)
    enhancing = _enhancing(grid, plan, core, middle, rng)
    label = np.zeros(grid.shape, np.uint8)
    label[lesion] = OEDEMA_LABEL
    label[core] = NECROSIS_LABEL
    label[enhancing] = ENHANCING_LABEL
    tissue = np.full(grid.shape, Tissue.OEDEMA, np.uint8)
    tissue[core] = Tissue.NECROSIS if plan.grade == "enhancing" else Tissue.SOLID
    if plan.cystic:
        tissue[middle] = Tissue.CYST
    tissue[enhancing] = Tissue.ENHANCING
    return Lesion(
        labels=label,
        tissue=tissue,
        share=_share(grid, outer, border, plan.ranges.inside, rng),
        contrast_spread=plan.ranges.contrast_spread,
    )


def _levels(
    grid: HeadGrid, plan: LesionPlan, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Distance from the centre in radii of the lesion: warped for its border and for its core."""
    ray = grid.points - np.array(plan.centre, np.float32)[:, None, None, None]
    along = plan.stretch.T @ ray.reshape(3, -1)
    distance = np.linalg.norm(along, axis=0).reshape(grid.shape) / np.float32(plan.radius)
    coarse = grid.smooth_field(wavelength=1.8 * plan.radius, rng=rng)
    fine = grid.smooth_field(wavelength=max(0.9 * plan.radius, 10), rng=rng)
    other = grid.smooth_field(wavelength=plan.radius, rng=rng)
    irregular = np.float32(rng.uniform(0.18, 0.36))
    outer = distance + irregular * coarse + np.float32(0.1) * fine
    inner = distance + irregular / 2 * coarse + np.float32(0.18) * other
    return outer, inner


def _same_side(grid: HeadGrid, plan: LesionPlan) -> NDArray[np.bool_]:
    """The hemisphere of the lesion; the falx stops it, the corpus callosum does not."""
    right = np.sign(plan.centre[0]) * grid.points[0]
    bridge = (np.abs(grid.points[1]) < 40) & (grid.points[2] < 26)
    allowed: NDArray[np.bool_] = (right > 0) | (bridge & (grid.points[2] > 8))
    return allowed


def _without_islands(outer: FloatArray, border: float) -> FloatArray:
    """Only the largest connected piece of ``outer <= border`` stays; the others become far."""
    pieces, count = ndimage.label(outer <= border)
    if count == 1:
        return outer
    sizes = np.bincount(pieces.ravel())
    largest = 1 + int(np.argmax(sizes[1:]))
    return np.where((pieces == 0) | (pieces == largest), outer, np.float32(np.inf))


def _lowest(level: FloatArray, where: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """The `share` of the voxels of `where` with the lowest level, at least one of them."""
    values = level[where]
    count = min(max(round(share * values.size), 1), values.size)
    threshold = np.partition(values, count - 1)[count - 1]
    chosen: NDArray[np.bool_] = where & (level <= threshold)
    return chosen


def _enhancing(
    grid: HeadGrid,
    plan: LesionPlan,
    core: NDArray[np.bool_],
    middle: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """The rim of an enhancing tumour, a few nodules of a patchy one, nothing of a low grade."""
    if plan.grade == "enhancing":
        return core & ~middle
    if plan.grade == "patchy":
        patches = grid.smooth_field(wavelength=14, rng=rng)
        return _lowest(patches, core & ~middle, rng.uniform(0.08, 0.3))
    return np.zeros_like(core)


def _share(
    grid: HeadGrid, outer: FloatArray, border: float, inside: float, rng: np.random.Generator
) -> FloatArray:
    """Signal of the lesion: fades over its border where it infiltrates, and is uneven inside."""
    softness = np.float32(rng.uniform(0.02, 0.18))
    middle = np.float32(border)
    if inside:
        middle -= np.float32(rng.uniform(0, inside)) * softness
    share = 1 / (1 + np.exp(np.clip((outer - middle) / softness, -20, 20)))
    uneven = np.clip(grid.smooth_field(wavelength=14, rng=rng), 0, 2)
    faded: FloatArray = share * (1 - np.float32(rng.uniform(0, 0.3)) * uneven)
    return faded
