"""`Charge`: what a cohort pays for noisy steps, before any accountant turns it into epsilon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medfl.privacy.mechanism import Mechanism


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Noisy steps of one mechanism that a cohort has paid for, or is about to.

    Raises:
        ValueError: If `steps` is no whole number >= 1.
    """

    mechanism: Mechanism
    steps: int

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"Expected whole steps >= 1, found {self.steps!r}.")


def merged(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """Charges with equal sampling probability and noise multiplier added up, in a fixed order.

    Only these two parameters enter epsilon; equal histories become equal values, whatever the
    rounds that they came in.
    """
    first: dict[tuple[float, float], Mechanism] = {}
    steps: dict[tuple[float, float], int] = {}
    for charge in charges:
        key = (charge.mechanism.sampling_prob, charge.mechanism.noise_multiplier)
        first.setdefault(key, charge.mechanism)
        steps[key] = steps.get(key, 0) + charge.steps
    return tuple(Charge(mechanism=first[key], steps=steps[key]) for key in sorted(first))


def check_delta(delta: float) -> None:
    """Raise ValueError unless delta is a float in (0, 1)."""
    if type(delta) is not float or not 0 < delta < 1:
        raise ValueError(f"Expected delta in (0, 1), found {delta!r}.")
