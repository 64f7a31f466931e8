"""What is known of a run under way: who was asked, who has answered, and who is late."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import ReportError
from medfl.reporting.dashboard import render_live
from medfl.runs.live_run import read_live

SITES = ("East", "North", "South", "West")


@pytest.fixture
def under_way(build_run: Callable[..., Path]) -> Path:
    """A run in its sixth round of ten."""
    run = build_run()
    for name in ("summary.json", "privacy.json", "federation.json"):
        (run / name).unlink(missing_ok=True)
    lines = (run / "rounds.jsonl").read_text().splitlines()[:5]
    rows = [json.loads(line) | {"seconds": 10.0} for line in lines]
    (run / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def wait_in(
    run: Path,
    *,
    number: int = 6,
    seconds: float = 1.0,
    left: float = 600.0,
    answered: Sequence[str] = ("West", "East"),
    others: float = 0.0,
) -> None:
    """Write what the server writes while a round waits."""
    now = datetime.now(UTC)
    content: dict[str, Any] = {
        "round": number,
        "since": (now - timedelta(seconds=seconds)).isoformat(),
        "deadline": (now + timedelta(seconds=left)).isoformat(),
        "asked": SITES,
        "answered": sorted(answered),
        "others": others,
    }
    (run / "waiting.json").write_text(json.dumps(content))


def test_who_has_not_answered_is_missing_and_not_late_at_first(under_way: Path) -> None:
    wait_in(under_way)
    run = read_live(under_way)
    assert run.waiting is not None
    assert run.waiting.missing == ("North", "South")
    assert 1.0 <= run.waiting.seconds < 100.0
    assert not run.late
    assert run.late_sites == ()


@pytest.mark.parametrize(
    ("seconds", "left", "late"),
    [(29.0 - 20, 600.0, False), (31.0, 600.0, True), (2.0, -1.0, True)],
    ids=["as long as rounds take", "three times as long", "after the deadline"],
)
def test_who_keeps_a_round_waiting_for_too_long_is_late(
    seconds: float, left: float, late: bool, under_way: Path
) -> None:
    wait_in(under_way, seconds=seconds, left=left)
    run = read_live(under_way)
    assert run.late is late
    assert run.late_sites == (("North", "South") if late else ())


@pytest.mark.parametrize(("seconds", "late"), [(85.0, False), (91.0, True)])
def test_nobody_is_late_who_may_be_at_work_for_another_study(
    seconds: float, late: bool, under_way: Path
) -> None:
    wait_in(under_way, seconds=seconds, others=60.0)
    assert read_live(under_way).late is late


def test_nobody_is_late_by_name_where_the_server_says_nothing(under_way: Path) -> None:
    run = read_live(under_way)
    assert run.waiting is None
    assert run.late_sites == ()


@pytest.mark.parametrize("number", [1, 5])
def test_a_round_that_is_over_is_not_waited_for(number: int, under_way: Path) -> None:
    wait_in(under_way, number=number, seconds=500.0)
    assert read_live(under_way).waiting is None


@pytest.mark.parametrize("content", ["", '{"round": 6', "[]", '{"round": 6}'])
def test_a_file_that_cannot_be_read_says_nothing(content: str, under_way: Path) -> None:
    (under_way / "waiting.json").write_text(content)
    assert read_live(under_way).waiting is None


def test_a_pretraining_is_shown_until_it_is_done(under_way: Path) -> None:
    (under_way / "rounds.jsonl").unlink()
    assert read_live(under_way).pretraining is None
    (under_way / "pretraining.json").write_text('{"done": 30, "total": 200}')
    run = read_live(under_way)
    assert run.pretraining == (30, 200)
    assert "30 of 200 steps" in render_live(run)
    (under_way / "pretraining.json").write_text('{"done": 200, "total": 200}')
    assert read_live(under_way).pretraining is None


def test_a_pretraining_before_the_finished_rounds_is_over(under_way: Path) -> None:
    (under_way / "pretraining.json").write_text('{"done": 30, "total": 200}')
    assert read_live(under_way).pretraining is None


def test_the_seconds_of_rounds_are_those_of_the_run_folder(under_way: Path) -> None:
    run = read_live(under_way)
    assert run.seconds == (10.0,) * 5
    assert run.seconds_a_round == 10.0


def test_the_page_names_who_is_waited_for_and_who_is_late(under_way: Path) -> None:
    wait_in(under_way)
    page = render_live(read_live(under_way))
    assert "not answered yet: <strong>North, South</strong>" in page
    assert "Late" not in page
    wait_in(under_way, seconds=40.0)
    assert '<span class="late">Late: North, South.</span>' in render_live(read_live(under_way))
    wait_in(under_way, answered=SITES)
    assert "all have answered" in render_live(read_live(under_way))


def test_names_of_sites_cannot_write_the_page(under_way: Path) -> None:
    wait_in(under_way)
    content = json.loads((under_way / "waiting.json").read_text())
    content["asked"] = ["<script>alert(1)</script>"]
    (under_way / "waiting.json").write_text(json.dumps(content))
    assert "<script" not in render_live(read_live(under_way))


def test_a_finished_run_waits_for_nobody(under_way: Path) -> None:
    wait_in(under_way, seconds=40.0)
    (under_way / "summary.json").write_text("{}")
    page = render_live(read_live(under_way))
    assert "Late" not in page
    assert "not answered" not in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="expected a run folder"):
        read_live(tmp_path)
