"""Whether what hides a patient is the noise that the accounting assumes.

That is one normal variable of standard deviation sigma C for every weight of every step,
independent of each other and of who was drawn, rounded to an integer. Right variances are not
enough: noise that two parameters share can be subtracted, noise that is cut off far out gives a
patient away where it ends, and a bit below the noise can carry anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import binom, chi2, norm

from medfl.audit.figure import SHARE, Figure, correlation, least_std
from medfl.audit.probe import SHAPES, SIZES, BoolArray, untouched
from medfl.audit.released_integers import Int64Array
from medfl.privacy.mechanism import Mechanism

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

BINS = 64
TAILS = (3.0, 4.0, 4.5)
"""How far out values are counted, in standard deviations."""

LOW_BITS = 4

_WAYS = (0, 1)  # noise changes from round to round and from step to step


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """Releases of one world in units of sigma C.

    Attributes:
        values: Shape (rounds, steps, weights).
    """

    values: Float32Array

    @classmethod
    def of(cls, integers: Int64Array, mechanism: Mechanism) -> Noise:
        """From the integers of one world."""
        values = integers * (mechanism.grid / mechanism.noise_std)
        return cls(values=values.astype(np.float32))

    @property
    def free(self) -> Float32Array:
        """Where nobody has a gradient; shape (rounds x steps, weights)."""
        chosen: Float32Array = self.values.reshape(-1, self.values.shape[-1])[:, untouched()]
        return chosen

    @property
    def centred(self) -> Float32Array:
        """All weights less their means; shape (rounds x steps, weights)."""
        flat = self.values.reshape(-1, self.values.shape[-1])
        centred: Float32Array = flat - flat.mean(axis=0)
        return centred


def weakest_place(name: str, worlds: Sequence[Noise], *, only_untouched: bool) -> Figure:
    """Standard deviation where chance explains it least: over worlds, blocks, and ways to change.

    Blocks are the parameters and the slices of the large one along each of its axes. Noise that
    repeats itself from round to round, or from step to step, has none in that way.

    Args:
        name: Of the figure.
        worlds: Under the same mechanism.
        only_untouched: Where patients are drawn by chance, noise shows alone only without them.
    """
    rounds, steps, _ = worlds[0].values.shape
    blocks = [block & untouched() if only_untouched else block for block in _blocks()]
    comparisons = len(worlds) * len(_WAYS) * len(blocks)
    per_weight = min((rounds - 1) * steps, rounds * (steps - 1))
    least = [
        least_std(degrees=per_weight * int(block.sum()), comparisons=comparisons)
        for block in blocks
    ]
    found = [
        (math.sqrt(float(variances[block].mean())), at_least)
        for world in worlds
        for way in _WAYS
        for variances in [world.values.var(axis=way, ddof=1, dtype=np.float64).mean(axis=0)]
        for block, at_least in zip(blocks, least, strict=True)
    ]
    std, at_least = min(found, key=lambda place: place[0] / place[1])
    return Figure(name=name, found=std, promised=1.0, at_least=at_least)


def weakest_step(worlds: Sequence[Noise]) -> Figure:
    """Standard deviation of the one step with the least noise, empty batches included."""
    squares = np.concatenate([np.square(world.free).mean(axis=1) for world in worlds])
    at_least = least_std(degrees=worlds[0].free.shape[1], comparisons=len(squares))
    found = math.sqrt(float(squares.min()))
    return Figure(name="noise_std_of_step", found=found, promised=1.0, at_least=at_least)


def in_common(worlds: Sequence[Noise]) -> Figure:
    """Standard deviation of a step's sum over all weights, over that of independent ones.

    Far above 1 if weights share a small part of their noise, below if it cancels in the sum.
    """
    free = [world.free.astype(np.float64) for world in worlds]
    sums = np.concatenate([values.sum(axis=1) / math.sqrt(values.shape[1]) for values in free])
    low, high = (
        math.sqrt(float(chi2.ppf(level, len(sums))) / len(sums))
        for level in (SHARE / 2, 1 - SHARE / 2)
    )
    found = math.sqrt(float(np.square(sums).mean()))
    return Figure(name="noise_in_common", found=found, promised=1.0, at_least=low, at_most=high)


def between_weights(worlds: Sequence[Noise]) -> tuple[Figure, Figure]:
    """Correlation of any two weights in the same step: of one parameter, and of two.

    Args:
        worlds: In which the same patients take part in every step.
    """
    values = np.concatenate([world.centred for world in worlds])
    cosines = _cosines(values)
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    largest = {True: 0.0, False: 0.0}
    for start, size in zip(np.cumsum((0, *SIZES[:-1])), SIZES, strict=True):
        rows = np.abs(cosines[start : start + size])
        own = owner == owner[start]
        largest[True] = max(largest[True], float(rows[:, own].max()))
        largest[False] = max(largest[False], float(rows[:, ~own].max()))
    pairs = sum(size * (size - 1) // 2 for size in SIZES)
    across = len(owner) * (len(owner) - 1) // 2 - pairs
    dimensions = len(values) - len(worlds)
    return (
        correlation(
            "noise_between_weights", largest=largest[True], dimensions=dimensions, comparisons=pairs
        ),
        correlation(
            "noise_between_parameters",
            largest=largest[False],
            dimensions=dimensions,
            comparisons=across,
        ),
    )


def between_steps(worlds: Sequence[Noise]) -> tuple[Figure, Figure, Figure]:
    """Correlation of any two steps: of one round, of two rounds, and of two worlds."""
    rounds, steps, _ = worlds[0].values.shape
    values = np.concatenate([world.free for world in worlds])
    cosines = np.abs(_cosines(values.T))
    number = np.arange(len(values))
    world, round_number = number // (rounds * steps), number // steps
    later = number[:, None] < number[None, :]
    same_world = world[:, None] == world[None, :]
    same_round = round_number[:, None] == round_number[None, :]
    classes = {
        "noise_between_steps": later & same_round,
        "noise_between_rounds": later & same_world & ~same_round,
        "noise_between_worlds": later & ~same_world,
    }
    first, second, third = (
        correlation(
            name,
            largest=float(cosines[chosen].max(initial=0.0)),
            dimensions=values.shape[1],
            comparisons=int(chosen.sum()),
        )
        for name, chosen in classes.items()
    )
    return first, second, third


def shifted(worlds: Sequence[Noise]) -> Figure:
    """Correlation of neighbouring steps and rounds after any shift along the large parameter.

    A stream that is wound back a little repeats its noise in other places.
    """
    found, comparisons, length = 0.0, 0, 0
    for world in worlds:
        large = world.values[..., -SIZES[-1] : -1]
        length = large.shape[-1]
        norms = np.linalg.norm(large, axis=-1)
        spectra = np.fft.rfft(large, axis=-1)
        for one, other in (
            ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
            ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ):
            products = np.fft.irfft(spectra[one].conj() * spectra[other], n=length, axis=-1)
            cosines = np.abs(products).max(axis=-1) / (norms[one] * norms[other] + _TINY)
            found = max(found, float(cosines.max(initial=0.0)))
            comparisons += products.size
    return correlation("noise_shifted", largest=found, dimensions=length, comparisons=comparisons)


def normality(worlds: Sequence[Noise]) -> tuple[Figure, ...]:
    """The normal distribution: Pearson's chi-squared over equally likely bins, and the tails."""
    values = np.concatenate([world.free.ravel() for world in worlds])
    places = (ndtr(values) * BINS).astype(np.int64).clip(0, BINS - 1)
    expected = len(values) / BINS
    deviations = np.square(np.bincount(places, minlength=BINS) - expected) / expected
    bulk = Figure(
        name="noise_shape",
        found=float(deviations.sum()) / (BINS - 1),
        promised=1.0,
        at_most=float(chi2.isf(SHARE, BINS - 1)) / (BINS - 1),
    )
    return (bulk, *(_tail(values, beyond=beyond) for beyond in TAILS))


def apart_from_draws(worlds: Sequence[tuple[Noise, BoolArray]]) -> Figure:
    """Correlation of who was drawn with the noise of any weight, and with the noise of a step.

    Args:
        worlds: Noise, and who took part, of shape (steps, patients).
    """
    took_part = np.concatenate([drawn for _, drawn in worlds]).astype(np.float32)
    free = np.concatenate([noise.free for noise, _ in worlds])
    size = np.square(free).sum(axis=1, keepdims=True)
    signals = np.concatenate([free, size], axis=1)
    causes = np.concatenate([took_part, took_part.sum(axis=1, keepdims=True)], axis=1)
    cosines = _unit(causes - causes.mean(axis=0)).T @ _unit(signals - signals.mean(axis=0))
    return correlation(
        "noise_and_draws",
        largest=float(np.abs(cosines).max()),
        dimensions=len(free) - 1,
        comparisons=cosines.size,
    )


def low_bits(worlds: Sequence[Int64Array]) -> Figure:
    """How far the low bits of a weight's integers are from falling like fair coins.

    A checksum over all weights counts as one more weight. For n coins, the count is within
    z sqrt(n) / 2 of n / 2 but for a chance of 2 exp(-z^2 / 2) (Hoeffding 1963, theorem 2).

    Args:
        worlds: Integers, each of shape (rounds, steps, weights).
    """
    found, comparisons = 0.0, 0
    for integers in worlds:
        for coins in _coins(integers):
            found = max(found, _bias(coins.sum(axis=0), number=len(coins)))
            comparisons += coins.shape[1]
    return _fair("low_bits", found, comparisons=comparisons)


def low_bits_by_draw(worlds: Sequence[tuple[Int64Array, BoolArray]]) -> Figure:
    """The same among the steps that drew a patient, for every patient.

    Args:
        worlds: Integers, and who took part, of shape (steps, patients).
    """
    found, comparisons = 0.0, 0
    for integers, took_part in worlds:
        for coins in _coins(integers):
            ones = took_part.T.astype(np.float32) @ coins.astype(np.float32)
            for counts, number in zip(ones, took_part.sum(axis=0), strict=True):
                found = max(found, _bias(counts, number=int(number)))
                comparisons += len(counts)
    return _fair("low_bits_by_draw", found, comparisons=comparisons)


_TINY = 1e-30  # a step without any noise has no direction


def _tail(values: Float32Array, *, beyond: float) -> Figure:
    chance = 2 * float(norm.sf(beyond))
    expected = len(values) * chance
    low = float(binom.ppf(SHARE / 2, len(values), chance))
    high = float(binom.isf(SHARE / 2, len(values), chance))
    return Figure(
        name=f"noise_beyond_{beyond:g}",
        found=int((np.abs(values) > beyond).sum()) / expected,
        promised=1.0,
        at_least=low / expected,
        at_most=high / expected,
    )


def _blocks() -> list[BoolArray]:
    """Masks over all weights: each parameter, and each slice of the last one along each axis."""
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    blocks = [owner == number for number in range(len(SIZES))]
    where = np.indices(SHAPES[-1]).reshape(len(SHAPES[-1]), -1)
    for axis, length in enumerate(SHAPES[-1]):
        for place in range(length):
            block = np.zeros(sum(SIZES), dtype=np.bool_)
            block[-SIZES[-1] :] = where[axis] == place
            blocks.append(block)
    return blocks


def _coins(integers: Int64Array) -> list[BoolArray]:
    """Each low bit of every weight and of the checksum; shape (steps, weights + 1)."""
    flat = integers.reshape(-1, integers.shape[-1])
    checked = np.concatenate([flat, np.bitwise_xor.reduce(flat, axis=1, keepdims=True)], axis=1)
    low = (checked & (2**LOW_BITS - 1)).astype(np.uint8)
    return [(low >> bit & 1).astype(np.bool_) for bit in range(LOW_BITS)]


def _bias(ones: npt.NDArray[np.generic], *, number: int) -> float:
    """Largest distance of counts of fair coins from their mean, in standard deviations."""
    if not number:
        return 0.0
    return float(np.abs(2.0 * ones.astype(np.float64) - number).max()) / math.sqrt(number)


def _fair(name: str, found: float, *, comparisons: int) -> Figure:
    at_most = math.sqrt(2 * math.log(2 * comparisons / SHARE))
    return Figure(name=name, found=found, promised=0.0, at_most=at_most)


def _cosines(columns: Float32Array) -> Float32Array:
    """Of any two columns; 0 of a column with itself."""
    unit = _unit(columns)
    cosines: Float32Array = unit.T @ unit
    np.fill_diagonal(cosines, 0.0)
    return cosines


def _unit(columns: Float32Array) -> Float32Array:
    unit: Float32Array = columns / (np.linalg.norm(columns, axis=0) + np.float32(_TINY))
    return unit
