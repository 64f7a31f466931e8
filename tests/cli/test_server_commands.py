"""What the coordinator's commands say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medfl.config import load_study


def test_a_new_server_names_the_study_to_start_from(medfl: Any, tmp_path: Path) -> None:
    ended = medfl("server", "init", tmp_path / "server", "--host", "localhost")
    assert ended.code == 0
    (line,) = [line for line in ended.out.splitlines() if line.startswith("A study to edit: ")]
    assert load_study(Path(line.removeprefix("A study to edit: "))).id == "first-study"
