"""Selective sharing of a site's update by the sparse vector technique, and what it really costs.

Li et al., "Privacy-preserving Federated Brain Tumour Segmentation" (MICCAI MLMI 2019, arXiv
1910.00962, algorithm 2), after Shokri and Shmatikov (CCS 2015): of d numbers a site shares c = Q d
whose size seems to pass a noisy threshold, each with Laplace noise. Neighbours differ in the whole
update of one site, which covers any patient of it. Clipped to [-g, g], a number's size changes by g
at most and its value by 2 g. With noise Lap(g / e_t) on the threshold and Lap(2 c g / e_q) on each
query, and at most c queries that pass, the choice is (e_t + e_q)-DP (Lyu, Su and Li, VLDB 2017,
algorithm 7). Noise Lap(2 c g / e_v) on each value that is sent makes one of them (e_v / c)-DP and
all c of them e_v-DP. A round costs e_t + e_q + e_v, and rounds add up; delta is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PASSES = 1000


@dataclass(frozen=True, kw_only=True)
class SparseVector:
    """The mechanism of one site and round.

    Attributes:
        numbers: d, how many numbers an update has.
        share: Q, the share of them that is sent.
        reach: g, the largest size of a number; larger ones are clipped before any noise is drawn.
        threshold: tau, what a number's size has to pass, before noise.
        epsilon: Of one round, split as 1 : 4 : 4 between threshold, queries and values; infinite
            for no noise.
    """

    numbers: int
    share: float
    reach: float
    threshold: float
    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.sent < 1:
            raise ValueError(f"Expected a share in (0, 1] of {self.numbers}, found {self.share:g}.")
        if not (self.reach > 0 and self.threshold >= 0 and self.epsilon > 0):
            raise ValueError("Expected reach > 0, threshold >= 0 and epsilon > 0.")

    @property
    def sent(self) -> int:
        """c, how many numbers a round sends at most."""
        return int(self.share * self.numbers)

    @property
    def scales(self) -> tuple[float, float, float]:
        """Of the Laplace noise on the threshold, on a query and on a value that is sent."""
        if math.isinf(self.epsilon):
            return 0.0, 0.0, 0.0
        of_threshold, of_query, of_value = (self.epsilon * part / 9 for part in (1, 4, 4))
        widest = 2 * self.sent * self.reach
        return self.reach / of_threshold, widest / of_query, widest / of_value

    def true_epsilon(self, rounds: int) -> float:
        """What all rounds of a site cost together, for each of its patients."""
        return self.epsilon * rounds

    def apply(
        self, update: NDArray[np.float64], *, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """What a site sends: zeros, but for the numbers that were chosen.

        Queries are asked in random order and anew until c have passed, which costs nothing: the
        technique pays for those that pass.

        Args:
            update: All numbers, in one row.
            generator: Of the order and of all noise. Not that of an operating system: this is
                a comparison, and nothing of it is released.
        """
        of_threshold, of_query, of_value = self.scales
        clipped = np.clip(update, -self.reach, self.reach)
        line = self.threshold + generator.laplace(scale=of_threshold)
        left = generator.permutation(self.numbers)
        chosen = np.empty(0, dtype=np.int64)
        for _ in range(_PASSES):
            passed = (
                np.abs(clipped[left]) + generator.laplace(scale=of_query, size=len(left)) >= line
            )
            chosen = np.concatenate([chosen, left[passed]])[: self.sent]
            left = left[~passed]
            if len(chosen) == self.sent or of_query == 0:
                break
        sent = np.zeros_like(clipped)
        sent[chosen] = clipped[chosen] + generator.laplace(scale=of_value, size=len(chosen))
        return sent


def largest(update: NDArray[np.float64], *, share: float) -> NDArray[np.float64]:
    """Partial sharing without noise: the share of the numbers that are largest, and zeros.

    Li et al. 2019, section 2.2; it limits what is seen and promises nothing.
    """
    count = int(share * update.size)
    sent = np.zeros_like(update)
    chosen = np.argpartition(np.abs(update), -count)[-count:]
    sent[chosen] = update[chosen]
    return sent
