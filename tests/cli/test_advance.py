"""Long work speaks in a pipe too."""

from __future__ import annotations

from typing import Any

import pytest

from medfl.cli import advance as module
from medfl.cli.advance import shown_advance


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_a_line_at_the_beginning_now_and_then_and_at_the_end(
    capsys: Any, clock: list[float]
) -> None:
    with shown_advance() as advance:
        for done in range(1, 101):
            clock[0] += 1.0
            advance("segmenting", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "segmenting: 1/100"
    assert lines[-1] == "segmenting: 100/100"
    assert len(lines) == 11


def test_every_part_has_lines_of_its_own(capsys: Any, clock: list[float]) -> None:
    with shown_advance() as advance:
        for part in ("first", "second"):
            advance(part, 0, 2)
            advance(part, 1, 2)
            advance(part, 2, 2)
    assert capsys.readouterr().err.splitlines() == [
        "first: 0/2",
        "first: 2/2",
        "second: 0/2",
        "second: 2/2",
    ]


@pytest.mark.usefixtures("clock")
def test_a_part_that_is_done_twice_is_told_once(capsys: Any) -> None:
    with shown_advance() as advance:
        advance("part", 2, 2)
        advance("part", 2, 2)
    assert capsys.readouterr().err.splitlines() == ["part: 2/2"]
