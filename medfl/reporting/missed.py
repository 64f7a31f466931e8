"""What sites missed, in words: updates that were not counted, and rounds begun without a site."""

from __future__ import annotations

from medfl.reporting.texts import Texts
from medfl.runs.attendance import AWAY, SILENT, STUDIES_AT_ONCE, Absence, MissedRounds
from medfl.runs.results import RunResults

_OUTCOMES = {
    "refused": "outcome.refused",
    "rejected": "outcome.rejected",
    "silent": "outcome.silent",
}


def missed_updates(run: RunResults, texts: Texts) -> list[str]:
    """``South in round 4 (silent: timeout)``, one for each."""
    return [
        texts(
            "missed.update_with_code" if at.code else "missed.update",
            site=name,
            round=row.round,
            outcome=texts(_OUTCOMES[at.outcome]),
            code=at.code,
        )
        for row in run.rounds
        for name, at in row.sites.items()
        if at.outcome != "admitted"
    ]


def absences(run: RunResults, texts: Texts) -> dict[str, str]:
    """By site: the rounds that were begun without it, and why."""
    return {
        site: "; ".join(_absence(missed, texts) for missed in each)
        for site, each in run.absent.items()
    }


def _absence(missed: MissedRounds, texts: Texts) -> str:
    reason = _reason(missed.absence, texts)
    if missed.first == missed.last:
        return texts("absent.round", first=missed.first, reason=reason)
    return texts("absent.rounds", first=missed.first, last=missed.last, reason=reason)


def _reason(absence: Absence, texts: Texts) -> str:
    if absence.code == AWAY:
        return texts("absent.away", seconds=absence.waited)
    if absence.code == SILENT:
        return texts("absent.silent", seconds=absence.waited)
    if absence.code == STUDIES_AT_ONCE:
        runs = ", ".join(absence.beside) or texts("absent.unknown_runs")
        return texts("absent.studies_at_once", runs=runs, code=absence.code)
    return absence.code
