"""The mechanism test in plain words: what each figure means, what is promised, what was found."""

from __future__ import annotations

from typing import Protocol

from medfl.reporting.texts import ENGLISH, Texts

MEASURED: dict[str, str] = {
    "sensitivity": "measured.sensitivity",
    "sensitivity_spread": "measured.sensitivity_spread",
    "mu": "measured.mu",
    "inclusion": "measured.inclusion",
    "noise_std": "measured.noise_std",
    "noise_std_of_small_batches": "measured.noise_std_of_small_batches",
    "noise_std_of_step": "measured.noise_std_of_step",
    "noise_in_common": "measured.noise_in_common",
    "noise_between_weights": "measured.noise_between_weights",
    "noise_between_parameters": "measured.noise_between_parameters",
    "noise_between_steps": "measured.noise_between_steps",
    "noise_between_rounds": "measured.noise_between_rounds",
    "noise_between_worlds": "measured.noise_between_worlds",
    "noise_shifted": "measured.noise_shifted",
    "noise_shape": "measured.noise_shape",
    "noise_beyond_3": "measured.noise_beyond_3",
    "noise_beyond_4": "measured.noise_beyond_4",
    "noise_beyond_4.5": "measured.noise_beyond_4.5",
    "noise_and_draws": "measured.noise_and_draws",
    "low_bits": "measured.low_bits",
    "low_bits_by_draw": "measured.low_bits_by_draw",
    "drawn_share": "measured.drawn_share",
    "drawn_least": "measured.drawn_least",
    "drawn_most": "measured.drawn_most",
    "drawn_together": "measured.drawn_together",
    "batch_size_variance": "measured.batch_size_variance",
    "drawn_twice": "measured.drawn_twice",
    "drawn_again": "measured.drawn_again",
    "irregular_rounds": "measured.irregular_rounds",
    "off_grid": "measured.off_grid",
}
"""Keys of the texts, by the name of the figure in ``audit.json``."""


class MeasuredFigure(Protocol):
    """A measured number beside its promise."""

    @property
    def name(self) -> str:
        """Which one."""

    @property
    def found(self) -> float:
        """The estimate."""

    @property
    def promised(self) -> float:
        """By the mechanism."""

    @property
    def at_least(self) -> float | None:
        """Less breaks the promise."""

    @property
    def at_most(self) -> float | None:
        """More breaks it."""


def meaning(figure: MeasuredFigure, texts: Texts = ENGLISH) -> str:
    """What was measured; the name itself where a newer version measured something else."""
    key = MEASURED.get(figure.name)
    return figure.name if key is None else texts(key)


def promise(figure: MeasuredFigure) -> str:
    """The promised value, and on which side of it the promise is broken."""
    low, high = _ends(figure)
    sign = "" if low and high else "≥ " if low else "≤ "
    is_size = figure.promised == 0 and not low  # of something that has no sign
    return f"{'' if is_size else sign}{figure.promised:g}"


def finding(figure: MeasuredFigure, texts: Texts = ENGLISH) -> str:
    """The estimate, and how far chance alone would have let it go."""
    low, high = _ends(figure)
    if low and low == high:
        return f"{figure.found:g}"
    found = f"{figure.found:.3f}"
    if low and high:
        return texts("audit.by_chance", found=found, low=low, high=high)
    if low:
        return texts("audit.by_chance.from", found=found, low=low)
    return texts("audit.by_chance.up_to", found=found, high=high)


def _ends(figure: MeasuredFigure) -> tuple[str, str]:
    ends = (figure.at_least, figure.at_most)
    low, high = ("" if end is None or abs(end) == float("inf") else f"{end:.3f}" for end in ends)
    return low, high
