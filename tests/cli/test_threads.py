"""How the command line's threads wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
import medfl.cli
assert "torch" not in sys.modules, "its OpenMP has read the policy already"
sys.argv = ["medfl", "--version"]
try:
    medfl.cli.main()
finally:
    print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize("chosen", ["", "ACTIVE"])
def test_waiting_threads_sleep_unless_somebody_chose_otherwise(chosen: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if chosen:
        environment["OMP_WAIT_POLICY"] = chosen
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == (chosen or "PASSIVE")
