"""The mechanism test in plain words: what each figure means, what is promised, what was found."""

from __future__ import annotations

from typing import Protocol

WORDS: dict[str, str] = {
    "sensitivity": "How far one patient moves a step, over C",
    "sensitivity_spread": "The same, with a gradient in every parameter",
    "mu": "The μ that a step of the probe amounts to",
    "inclusion": "How far a patient moves a step on average, drawn with q, over C",
    "noise_std": "Noise of a step, over σ C, in its weakest place",
    "noise_std_of_small_batches": "The same, where many steps draw nobody",
    "noise_std_of_step": "The same, in the step with the least noise",
    "noise_in_common": "Noise on the sum of all weights, over that of independent noise",
    "noise_between_weights": "Noise shared by two weights of one parameter (correlation)",
    "noise_between_parameters": "Noise shared by two parameters (correlation)",
    "noise_between_steps": "Noise shared by two steps of a round (correlation)",
    "noise_between_rounds": "Noise shared by two rounds (correlation)",
    "noise_between_worlds": "Noise shared with and without a patient (correlation)",
    "noise_shifted": "Noise that comes back in other places (correlation)",
    "noise_shape": "Distance of the noise from the normal distribution (χ² over its degrees)",
    "noise_beyond_3": "Noise beyond 3 standard deviations, over the normal share",
    "noise_beyond_4": "Noise beyond 4 standard deviations, over the normal share",
    "noise_beyond_4.5": "Noise beyond 4.5 standard deviations, over the normal share",
    "noise_and_draws": "Noise that tells who was drawn (correlation)",
    "low_bits": "Low bits of what is released: largest bias, in standard deviations",
    "low_bits_by_draw": "The same, in the steps that drew a given patient",
    "drawn_share": "How often a patient is drawn",
    "drawn_least": "The patient drawn least often",
    "drawn_most": "The patient drawn most often",
    "drawn_together": "Two patients drawn together, the pair furthest from q²",
    "batch_size_variance": "Variance of the number drawn, over that of independent coins",
    "drawn_twice": "Patients drawn twice in one step",
    "drawn_again": "A patient's draws from step to step (correlation)",
    "irregular_rounds": "Rounds without one charge and one release for every step",
    "off_grid": "Released values that are not on the grid",
}
"""By the name of the figure in ``audit.json``."""


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


def meaning(figure: MeasuredFigure) -> str:
    """What was measured; the name itself where a newer version measured something else."""
    return WORDS.get(figure.name, figure.name)


def promise(figure: MeasuredFigure) -> str:
    """The promised value, and on which side of it the promise is broken."""
    low, high = _ends(figure)
    sign = "" if low and high else "≥ " if low else "≤ "
    is_size = figure.promised == 0 and not low  # of something that has no sign
    return f"{'' if is_size else sign}{figure.promised:g}"


def finding(figure: MeasuredFigure) -> str:
    """The estimate, and how far chance alone would have let it go."""
    low, high = _ends(figure)
    if low and low == high:
        return f"{figure.found:g}"
    chance = f"{low} to {high}" if low and high else f"from {low}" if low else f"up to {high}"
    return f"{figure.found:.3f} (by chance {chance})"


def _ends(figure: MeasuredFigure) -> tuple[str, str]:
    ends = (figure.at_least, figure.at_most)
    low, high = ("" if end is None or abs(end) == float("inf") else f"{end:.3f}" for end in ends)
    return low, high
