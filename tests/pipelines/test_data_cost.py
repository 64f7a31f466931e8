"""The benchmark of reading finds every fault that it plants."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "data_cost.py"


@pytest.mark.slow
def test_every_planted_fault_is_found_in_a_cohort_that_is_sound_otherwise() -> None:
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "preflight", "90"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    cost = json.loads(ended.stdout.splitlines()[-1])
    assert cost["cases"] == 90
    assert cost["found"] == cost["planted"] >= 70
    assert cost["unplanted"] == 0
    assert cost["seconds"] > 0
