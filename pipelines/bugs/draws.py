"""Bugs of the draws: patients who are not drawn independently with probability q."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bugs.planting import Bug, Plant, Planting, edited
from medfl.privacy import engine, sampling
from medfl.privacy.engine import train_round
from medfl.privacy.sampling import poisson_draw

Draw = Callable[..., list[int]]

_COINS = "drawn = source.uniform(population) < probability"
_DRAWN = "[int(index) for index in np.flatnonzero(drawn)]"
_RELEASE = "        private.release()\n"


def _drawn_by(make: Callable[[Draw], Draw]) -> Plant:
    """Another way to draw; a fresh one each time it is planted, since it may remember things."""

    def plant(planting: Planting) -> None:
        draw = make(poisson_draw)
        for module in (engine, sampling):
            planting.exchange(module, "poisson_draw", draw)

    return plant


def _in_epochs(_: Draw) -> Draw:
    left: dict[int, tuple[object, list[int]]] = {}  # of every stream; holds it, so that ids differ

    def draw(*, population: int, probability: float, source: Any) -> list[int]:
        _, order = left.setdefault(id(source), (source, []))
        count = round(probability * population)
        if len(order) < count:
            order[:] = [int(index) for index in np.argsort(source.uniform(population))]
        batch = sorted(order[:count])
        del order[:count]
        return batch

    return draw


def _once(right: Draw) -> Draw:
    first: dict[int, tuple[object, list[int]]] = {}

    def draw(*, population: int, probability: float, source: Any) -> list[int]:
        if id(source) not in first:
            batch = right(population=population, probability=probability, source=source)
            first[id(source)] = (source, batch)
        return first[id(source)][1]

    return draw


class _GlobalCoins:
    """What a global seed makes predictable."""

    def uniform(self, count: int) -> Any:
        """Values in [0, 1)."""
        return torch.rand(count, dtype=torch.float64).numpy()


def _publicly(right: Draw) -> Draw:
    def draw(*, population: int, probability: float, source: Any) -> list[int]:  # noqa: ARG001
        return right(population=population, probability=probability, source=_GlobalCoins())

    return draw


DRAWS = (
    Bug(
        name="drawn too often",
        group="draws",
        sentence="Everybody is drawn with probability 1.2 q.",
        plant=edited(poisson_draw, (_COINS, f"{_COINS} * 1.2")),
    ),
    Bug(
        name="fixed-size batches",
        group="draws",
        sentence="A step takes q n patients, no more and no less.",
        plant=edited(
            poisson_draw,
            (
                _COINS,
                "places = np.argsort(np.argsort(source.uniform(population)))\n"
                "    drawn = places < round(probability * population)",
            ),
        ),
    ),
    Bug(
        name="drawn with replacement",
        group="draws",
        sentence="A step takes q n patients, and may take one of them twice.",
        plant=edited(
            poisson_draw,
            (
                _DRAWN,
                "sorted(int(coin * population) for coin in "
                "source.uniform(round(probability * population)))",
            ),
        ),
    ),
    Bug(
        name="one coin for all",
        group="draws",
        sentence="A step takes everybody, with probability q, or nobody.",
        plant=edited(
            poisson_draw,
            (_COINS, "drawn = np.repeat(source.uniform(1), population) < probability"),
        ),
    ),
    Bug(
        name="shuffled epochs",
        group="draws",
        sentence="Nobody is drawn a second time before everybody was drawn once.",
        plant=_drawn_by(_in_epochs),
    ),
    Bug(
        name="same draw in every step",
        group="draws",
        sentence="The patients of a round are drawn once.",
        plant=_drawn_by(_once),
    ),
    Bug(
        name="somebody never drawn",
        group="draws",
        sentence="The first patient is left out.",
        plant=edited(poisson_draw, (_COINS, f"{_COINS}\n    drawn[:1] = False")),
    ),
    Bug(
        name="drawn by a global generator",
        group="draws",
        sentence="Coins come from torch's generator, which a public seed predicts.",
        plant=_drawn_by(_publicly),
    ),
    Bug(
        name="empty batches skipped",
        group="draws",
        sentence="A step without patients adds no noise and moves nothing.",
        plant=edited(train_round, (_RELEASE, "        if batch:\n            private.release()\n")),
    ),
    Bug(
        name="divided by the drawn batch",
        group="draws",
        sentence="The noisy sum is divided by the number of drawn patients.",
        plant=edited(
            train_round,
            (_RELEASE, "        private.expected_batch_size = max(1, len(batch))\n" + _RELEASE),
        ),
    ),
)
