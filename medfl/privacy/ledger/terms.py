"""What is fixed in a ledger: the terms that it was made for, and the agreement of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from medfl.config.site import Purpose
from medfl.errors import LedgerError
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.mechanism import Mechanism

_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a ledger was made for; fixed permanently once a run was admitted.

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


def terms_in(entries: Sequence[Entry]) -> Terms:
    """The newest terms of a ledger.

    They are in its first entry, and again each time that the ledger was made again, which is only
    possible while it holds nothing else.

    Args:
        entries: A chain from its first entry.

    Raises:
        LedgerError: If it does not begin with terms, or if they were changed later.
    """
    if entries[0].kind != "init":
        raise LedgerError(f"Expected a ledger that begins with 'init', found {entries[0].kind!r}.")
    terms = [entry for entry in entries if entry.kind == "init"]
    if any(entry.kind != "init" for entry in entries[: len(terms)]):
        raise LedgerError(
            "Expected terms that stay once a run was admitted, found entry "
            f"{terms[-1].sequence} to change them."
        )
    return Terms(**terms[-1].content)


def _first_use(entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in entries if entry.kind != "init"), None)


def advice_on_change(entries: Sequence[Entry]) -> str:
    """What to do where a site's file says something else than its ledger was made for."""
    if _first_use(entries) is None:
        return (
            "Nothing was agreed to yet: `medfl ledger init SITE.toml --again` makes it for what "
            "the site's file says now."
        )
    return "What a ledger was made for is fixed; change the site's file back."


def require_unbound(entries: Sequence[Entry]) -> None:
    """Refuse to change the terms of a ledger that was used.

    Raises:
        LedgerError: If a run was admitted, agreed to or charged, or a loss acknowledged.
    """
    bound = _first_use(entries)
    if bound is not None:
        raise LedgerError(
            "Expected a ledger that nothing was agreed to or charged to, found entry "
            f"{bound.sequence} ({bound.kind!r}) of {bound.time}; what it was made for stays."
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
