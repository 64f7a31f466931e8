"""A number of a study that changes from round to round, in a way that is fixed before the first.

A schedule is public and a function of the round alone: not of data, not of losses, not of what an
earlier round gave. So everybody can compute a round's value, and a resumed run goes on as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfl.config.files import Section

Shape = Literal["constant", "linear", "cosine"]

MIN_FINAL_FRACTION = 1e-4
"""Above 0: a last round at a rate of zero would cost like any other and change nothing."""

MAX_ROUNDS = 10**6
"""No study that anybody runs has as many."""


@dataclass(frozen=True, kw_only=True)
class RoundSchedule:
    """The factor of each round, at most 1.

    In the W rounds of warm-up it is r / (W + 1) in round r, so that round W + 1 is the first at the
    full value. From there on it stays (``constant``) or falls to the final fraction f in the last
    round R, with p = (r - W - 1) / (R - W - 1): as 1 - (1 - f) p (``linear``) or as
    f + (1 - f) (1 + cos(pi p)) / 2 (``cosine``; Loshchilov and Hutter, arXiv 1608.03983, eq. 5,
    without restarts).

    Attributes:
        shape: What follows the warm-up.
        warmup_rounds: W, less than the rounds.
        final_fraction: f; 1 where the shape is ``constant``, else `MIN_FINAL_FRACTION` to below 1.
        rounds: R.

    Raises:
        ValueError: If a value is outside its range.
    """

    shape: Shape
    warmup_rounds: int
    final_fraction: float
    rounds: int

    def __post_init__(self) -> None:
        shape, final = self.shape, self.final_fraction
        if shape not in ("constant", "linear", "cosine"):
            raise ValueError(f"expected shape 'constant', 'linear' or 'cosine', found {shape!r}")
        if type(final) is not float or not MIN_FINAL_FRACTION <= final <= 1:
            raise ValueError(
                f"expected final_fraction in [{MIN_FINAL_FRACTION:g}, 1], found {final!r}"
            )
        if (shape == "constant") != (final == 1):
            raise ValueError(
                "expected final_fraction < 1 exactly where the shape is not 'constant', found "
                f"{final:g} with {shape!r}"
            )
        if type(self.rounds) is not int or not 1 <= self.rounds <= MAX_ROUNDS:
            raise ValueError(f"expected rounds in [1, {MAX_ROUNDS}], found {self.rounds!r}")
        warmup = self.warmup_rounds
        if type(warmup) is not int or not 0 <= warmup < self.rounds:
            raise ValueError(
                f"expected warmup_rounds in [0, {self.rounds - 1}], so that a round of the "
                f"{self.rounds} has the full value, found {warmup!r}"
            )

    def factor(self, round_number: int) -> float:
        """What the full value is multiplied by in a round.

        Args:
            round_number: 1 to `rounds`.

        Returns:
            In (0, 1].

        Raises:
            ValueError: If there is no such round.
        """
        if not 1 <= round_number <= self.rounds:
            raise ValueError(f"expected a round in [1, {self.rounds}], found {round_number}")
        past = round_number - self.warmup_rounds - 1
        if past < 0:
            return round_number / (self.warmup_rounds + 1)
        progress = past / max(1, self.rounds - self.warmup_rounds - 1)
        left = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.final_fraction + (1 - self.final_fraction) * left

    @property
    def least(self) -> float:
        """The smallest factor of any round."""
        return min(self.factor(1), self.factor(self.rounds))


class StudySchedule(Section):
    """How a number of the study changes from round to round; see `RoundSchedule`.

    Attributes:
        shape: ``constant``, or a fall to the final fraction that is ``linear`` or a ``cosine``.
        warmup_rounds: Rounds that lead up to the full value.
        final_fraction: Of the full value, in the last round.
    """

    shape: Shape = "constant"
    warmup_rounds: Annotated[int, Field(ge=0, lt=MAX_ROUNDS)] = 0
    final_fraction: Annotated[float, Field(ge=MIN_FINAL_FRACTION, le=1)] = 1.0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        self.over(MAX_ROUNDS)
        return self

    @property
    def is_constant(self) -> bool:
        """Whether every round has the full value."""
        return self.shape == "constant" and self.warmup_rounds == 0

    def over(self, rounds: int) -> RoundSchedule:
        """The schedule of a study with so many rounds.

        Raises:
            ValueError: If the warm-up leaves none of them.
        """
        return RoundSchedule(**self.model_dump(), rounds=rounds)
