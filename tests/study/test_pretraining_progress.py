"""Who watches a run sees how far another process is with its first model."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.runs.files import PRETRAINING
from medfl.study import pretraining_progress
from medfl.study.pretraining_progress import read_progress, write_progress


def test_what_is_written_can_be_read_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining_progress, "WRITE_SECONDS", 0.0)
    assert read_progress(tmp_path) is None
    advance = write_progress(tmp_path)
    seen = []
    for done in range(1, 6):
        advance(done, 5)
        seen.append(read_progress(tmp_path))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_quick_steps_do_not_wear_out_the_disk_and_the_last_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining_progress, "WRITE_SECONDS", 3600.0)
    advance = write_progress(tmp_path)
    advance(1, 100)
    for done in range(2, 100):
        advance(done, 100)
        assert read_progress(tmp_path) == (1, 100)
    advance(100, 100)
    assert read_progress(tmp_path) == (100, 100)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"done": "x", "total": 2}'])
def test_a_damaged_file_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / PRETRAINING.name).write_text(content)
    assert read_progress(tmp_path) is None
