"""What is fixed in a ledger: the terms that it was made for, and the agreement of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from medfl.config.site import Purpose
from medfl.privacy.mechanism import Mechanism

_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a ledger was made for; fixed for ever.

    Attributes:
        cohort: Name of the patients' cohort.
        epsilon: Lifetime budget.
        delta: Delta at which epsilon is read.
        purpose: ``hospital`` admits noise from the operating system only; ``open-data`` also admits
            baselines without noise, which are recorded as infinite and not held against the budget.
    """

    cohort: str
    epsilon: float
    delta: float
    purpose: Purpose

    def __post_init__(self) -> None:
        check_name("cohort", self.cohort)
        _check_number("epsilon", self.epsilon, upper=math.inf)
        _check_number("delta", self.delta, upper=1.0)
        if self.purpose not in ("hospital", "open-data"):
            raise ValueError(f"Expected a known purpose, found {self.purpose!r}.")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a site agreed to for one run; the run may do this and nothing else.

    Attributes:
        study: Name of the study.
        proposal: Digest of the whole proposal.
        mechanism: Mechanism of each round.
        members: Keyed hashes of the patients who take part. Who joins the cohort later waits for
            the next run; who withdraws is drawn no more, while every public number stays.
        steps: Noisy steps that the run may be charged for, see `allowance.most_steps`; 0 in an
            agreement of a version that set no limit, so that such a run gets no further charge.
    """

    study: str
    proposal: str
    mechanism: Mechanism
    members: frozenset[str]
    steps: int

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 0:
            raise ValueError(f"Expected whole steps >= 0, found {self.steps!r}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "study": self.study,
            "proposal": self.proposal,
            "mechanism": self.mechanism.to_dict(),
            "members": sorted(self.members),
            "steps": self.steps,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; other keys are left alone."""
        return cls(
            study=values["study"],
            proposal=values["proposal"],
            mechanism=Mechanism.from_dict(values["mechanism"]),
            members=frozenset(values["members"]),
            steps=values.get("steps", 0),
        )


def check_name(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is short printable text."""
    if type(value) is not str or not value.isprintable() or not 1 <= len(value) <= _LONGEST_NAME:
        raise ValueError(
            f"Expected {name} to be 1 to {_LONGEST_NAME} printable characters, "
            f"found {str(value)[:_LONGEST_NAME]!r}."
        )


def _check_number(name: str, value: Any, *, upper: float) -> None:
    if type(value) is not float or not 0 < value < upper:
        raise ValueError(f"Expected {name} to be a number in (0, {upper:g}), found {value!r}.")
