"""`Attendance`: which sites a run began without, and why, as the server left it.

A study whose quorum is met goes on without the hospitals that are missing. A hospital that is named
nowhere would notice only by a model that has learned nothing from its patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medfl.runs.records import Count, Finite, Record

AWAY = "away"
"""Code of a site that was not connected."""

SILENT = "silent"
"""Code of a site that was asked and did not answer."""

STUDIES_AT_ONCE = "policy-studies-at-once"
"""Code of a site that is in as many studies as it takes part in at the same time."""


class Absence(Record):
    """Why a site takes no part.

    Attributes:
        code: `AWAY`, `SILENT`, or the code with which the site refused or was refused.
        seconds: How long it was waited for.
        beside: Runs of the server that it was in at that time, where it is about them.
    """

    code: str
    seconds: Finite
    beside: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The same for people."""
        if self.code == STUDIES_AT_ONCE:
            runs = ", ".join(self.beside) or "none that this server has under way"
            return (
                f"it is in as many studies at once as its policy allows ({runs}) and can take part "
                f"when one of them has ended ({self.code})"
            )
        if self.code not in (AWAY, SILENT):
            return self.code
        silence = f"no answer within {self.waited} s"
        return f"{silence} (not connected)" if self.code == AWAY else silence

    @property
    def waited(self) -> str:
        """The seconds that it was waited for, as people write them."""
        return f"{self.seconds:.{0 if self.seconds >= 1 else 2}f}"


class Attendance(Record):
    """One start of a run; each time that it goes on, the sites are asked anew.

    Attributes:
        first_round: The first round of this start.
        absent: The sites that take no part from then on, by name.
    """

    first_round: Count
    absent: dict[str, Absence]


@dataclass(frozen=True, kw_only=True)
class MissedRounds:
    """Rounds on end that a site took no part in.

    Attributes:
        first: Number of the first.
        last: Number of the last, which may be the same.
        absence: Why.
    """

    first: int
    last: int
    absence: Absence


def missed_rounds(
    starts: Sequence[Attendance], *, rounds: int
) -> dict[str, tuple[MissedRounds, ...]]:
    """What each absent site missed, in order; starts without a finished round say nothing.

    Args:
        starts: Of one run, in the order in which they came.
        rounds: Finished rounds.
    """
    missed: dict[str, list[MissedRounds]] = {}
    for number, start in enumerate(starts):
        # A start that goes on behind its predecessor's last checkpoint does its rounds again.
        last = min([rounds, *(later.first_round - 1 for later in starts[number + 1 :])])
        if last < start.first_round:
            continue
        for name, absence in start.absent.items():
            found = MissedRounds(first=start.first_round, last=last, absence=absence)
            missed.setdefault(name, []).append(found)
    return {name: tuple(found) for name, found in sorted(missed.items())}


def absences(starts: Sequence[Attendance], *, rounds: int) -> dict[str, str]:
    """`missed_rounds` in words."""
    return {
        name: "; ".join(map(_said, missed))
        for name, missed in missed_rounds(starts, rounds=rounds).items()
    }


def _said(missed: MissedRounds) -> str:
    several = missed.last > missed.first
    rounds = f"rounds {missed.first} to {missed.last}" if several else f"round {missed.last}"
    return f"{rounds}: {missed.absence.reason}"
