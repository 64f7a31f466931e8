"""Who a run began without, and how that is said."""

from __future__ import annotations

import pytest

from medfl.runs.attendance import AWAY, SILENT, STUDIES_AT_ONCE, Absence, Attendance, absences


@pytest.mark.parametrize(
    ("code", "seconds", "reason"),
    [
        (AWAY, 30.0, "no answer within 30 s (not connected)"),
        (SILENT, 61.7, "no answer within 62 s"),
        (SILENT, 0.25, "no answer within 0.25 s"),
        ("policy-rounds", 0.0, "policy-rounds"),
    ],
)
def test_a_reason_is_said_in_words(code: str, seconds: float, reason: str) -> None:
    assert Absence(code=code, seconds=seconds).reason == reason


def test_a_site_that_is_in_other_studies_is_said_to_be_in_them() -> None:
    absence = Absence(code=STUDIES_AT_ONCE, seconds=0.0, beside=("gliomas-1",))
    assert absence.reason == (
        "it is in as many studies at once as its policy allows (gliomas-1) and can take part when "
        "one of them has ended (policy-studies-at-once)"
    )
    elsewhere = Absence(code=STUDIES_AT_ONCE, seconds=0.0)
    assert "(none that this server has under way)" in elsewhere.reason


def start(first_round: int, *absent: str) -> Attendance:
    missing = {name: Absence(code="paused", seconds=0.0) for name in absent}
    return Attendance(first_round=first_round, absent=missing)


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([], {}),
        ([start(1)], {}),
        ([start(1, "south")], {"south": "rounds 1 to 9: paused"}),
        # It was not there at first, and for the last round.
        (
            [start(1, "south"), start(4), start(9, "south")],
            {"south": "rounds 1 to 3: paused; round 9: paused"},
        ),
        # A start that came to no round, for want of a quorum.
        ([start(1, "north", "south"), start(1, "south")], {"south": "rounds 1 to 9: paused"}),
        # A crash: what comes after the checkpoint is done again, by other sites.
        ([start(1), start(5, "south"), start(3)], {}),
    ],
)
def test_only_rounds_that_a_site_missed_are_told(
    starts: list[Attendance], said: dict[str, str]
) -> None:
    assert absences(starts, rounds=9) == said
