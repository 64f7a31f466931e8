"""Ctrl-C or SIGTERM in the middle of a study: one sentence, and every charge is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from medfl.config import load_site
from medfl.phantom.hospitals import write_hospitals
from medfl.privacy.ledger.ledger import Ledger
from medfl.protocol.keys import SiteKeys
from medfl.site.state import create_ledger

MEDFL = Path(sys.executable).with_name("medfl")
LONG = {
    "rounds = 2": "rounds = 500",
    "local_steps = 1": "local_steps = 2",
    "min_sites = 1": "min_sites = 2",
    "pictures = 0": "pictures = 0\nevery = 500",
}
HOSPITAL = {
    "open-data": "hospital",
    "= true": "= false",
    "threads = 2": "threads = 1",
    "max_rounds = 200": "max_rounds = 500",
    "held_out = 0.25": "held_out = 0.0",
    "declared_patients = 2 ": "declared_patients = 3 ",
}


def replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def hospitals(tmp_path: Path) -> list[Path]:
    """Two hospitals with ledgers."""
    folder = tmp_path / "hospitals"
    files = write_hospitals(
        folder,
        patients=(3, 3, 1, 1),
        shape=(20, 20, 16),
        spacing=(9.0, 9.0, 10.0),
        skull_stripped=True,
        seed=3,
        on_patient=lambda: None,
    )[:2]
    for file in files:
        text = replaced(file.read_text(), HOSPITAL)
        file.write_text(text)
        site = load_site(file)
        create_ledger(site, folder=site.state / "ledger").close()
        SiteKeys.create(site.state / "keys")
    return files


def _listen_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "number", "code"),
    [("1", signal.SIGINT, 130), ("2", signal.SIGINT, 130), ("2", signal.SIGTERM, 143)],
    ids=["Ctrl-C", "Ctrl-C, side by side", "SIGTERM, side by side"],
)
def test_a_study_that_is_stopped_by_hand_ends_cleanly_and_stays_charged(
    jobs: str, number: signal.Signals, code: int, hospitals: list[Path], study: Path, tmp_path: Path
) -> None:
    study.write_text(replaced(study.read_text(), LONG))
    out = tmp_path / "run"
    child = subprocess.Popen(
        [MEDFL, "simulate", study, *hospitals, "--out", out, "--jobs", jobs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Who runs the tests in the background may have told them to ignore Ctrl-C.
        preexec_fn=_listen_to_ctrl_c,
        start_new_session=True,
    )
    watchdog = threading.Timer(400, child.kill)
    watchdog.start()
    assert child.stderr is not None
    seen = ""
    for line in child.stderr:
        seen += line
        if "round 2/500" in line:
            if number == signal.SIGINT:
                os.killpg(child.pid, number)  # a terminal tells all processes of a command
            else:
                child.send_signal(number)
            break
    _, rest = child.communicate(timeout=60)
    watchdog.cancel()
    assert child.returncode == code, seen + rest
    assert "Traceback" not in seen + rest
    assert "Stopped. What was charged to a ledger stays charged" in rest
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(child.pid, 0)

    rounds = len((out / "rounds.jsonl").read_text().splitlines())
    assert rounds >= 2
    for file in hospitals:
        with Ledger.open(file.parent / "state" / file.stem / "ledger") as ledger:
            (spent,) = ledger.spent().by_run
            assert rounds <= spent.charges <= rounds + 1
            assert spent.epsilon > 0
    state = json.loads((out / "run.json").read_text())
    assert state["run"].startswith("tiny-")
