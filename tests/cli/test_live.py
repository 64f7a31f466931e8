"""What a person sees of a run, on a terminal and in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from medfl.cli.live import LiveProgress
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import Declaration, PatientScore, Scores
from medfl.runs.attendance import AWAY, Absence
from medfl.runs.records import Round, SiteRound
from medfl.runs.waiting import CONNECTING, Waiting

DECLARATION = Declaration(
    site="DU",
    purpose="hospital",
    declared_patients=20,
    weight=20.0,
    modalities=("t2f",),
    label_scheme="brats",
    delta=1e-5,
    epsilon_budget=8.0,
    epsilon=6.25,
    mechanism=Mechanism(
        sampling_prob=0.3,
        noise_multiplier=2.3456,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=5,
        declared_patients=20,
    ),
    run="run",
    run_steps=0,
    event_key="0" * 64,
    ledger_sequence=1,
    ledger_hash="0" * 64,
)


def record(number: int, *, lost: bool) -> Round:
    sites = {
        "DU": SiteRound(outcome="admitted", code="", epsilon=1.25, budget=8.0, steps=5),
        "HT": SiteRound(
            outcome="silent" if lost else "admitted",
            code="silent" if lost else "",
            epsilon=float("inf"),
            budget=4.0,
            steps=0,
        ),
    }
    return Round(round=number, seconds=3.21, sites=sites)


def shown(*, terminal: bool) -> str:
    """Everything that a run tells, in order, as text."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    score = PatientScore(patient="0123456789abcdef", region="WT", dice=0.512, hd95_mm=None)
    with LiveProgress(console) as progress:
        progress.phase("pretraining")
        for step in range(1, 21):
            progress.advanced(step, 20)
        progress.planned([DECLARATION], rounds=2)
        progress.phase("rounds")
        for number in (1, 2):
            for step in range(1, 6):
                progress.stepped("DU", step, 5)
            progress.round_finished(record(number, lost=number == 2))
        progress.scored(2, [Scores(site="DU", scores=(score,))])
        progress.phase("report")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_plan_budget_losses_and_scores_are_shown(terminal: bool) -> None:
    text = shown(terminal=terminal)
    assert "DU: 20 patients, sigma 2.346, epsilon after the study 6.25 of 8" in text
    assert "(silent: silent)" in text
    assert "held-out Dice after round 2: WT 0.512" in text


def test_a_log_file_gets_lines_and_no_control_characters() -> None:
    text = shown(terminal=False)
    assert "\x1b" not in text
    assert "  round 1/2  3.2 s  epsilon DU 1.25/8  HT inf/4" in text
    assert text.count("pretraining: ") == 10


def test_a_terminal_gets_bars() -> None:
    assert "━━━━" in shown(terminal=True)
    assert "━" not in shown(terminal=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_who_is_missing_is_named_on_a_terminal_and_in_a_log(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    waiting = Waiting.begin(1, asked=("DU", "HT", "FG"), timeout=30.0, phase=CONNECTING)
    for_ever = Waiting.begin(1, asked=("DU", "HT"), timeout=None, phase=CONNECTING)
    with LiveProgress(console) as progress:
        progress.phase("waiting for the sites")
        progress.awaited(waiting.hearing(["DU"]))
        progress.awaited(waiting.hearing(["DU", "HT", "FG"]))
        progress.awaited(for_ever.hearing(["DU"]))
        progress.left_out({"HT": Absence(code=AWAY, seconds=30.0)})
        progress.left_out({})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "  the sites connect: 1 of 3; waiting for FG, HT\n" in text
    assert "  the sites connect: 3 of 3\n" in text
    assert "1 of 2; waiting for HT, however long that takes\n" in text
    assert text.count("takes no part") == 1
    assert "  HT takes no part: no answer within 30 s (not connected)\n" in text
