"""A hospital whose ledger was charged, as a study would do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medfl.config import load_site
from medfl.privacy.ledger.ledger import Agreement
from medfl.privacy.mechanism import Mechanism
from medfl.site.state import hospital_state

MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=4.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=20,
    declared_patients=4,
)
AGREEMENT = Agreement(
    study="glioma", proposal="0" * 64, mechanism=MECHANISM, members=frozenset({"a"}), steps=40
)


def charge(file: Path, run: str) -> None:
    """One round of a run, as a study would charge it."""
    with hospital_state(load_site(file)).open_ledger() as ledger:
        ledger.agree(run, AGREEMENT)
        ledger.charge(study="glioma", run=run, round=1, message_id=run, mechanism=MECHANISM)
        ledger.mark_released(run, "ab" * 32)


def spent(medfl: Any, file: Path) -> float:
    """Epsilon as the budget command prints it."""
    return float(json.loads(medfl("budget", file, "--json").out)["epsilon"])


def charged(medfl: Any, file: Path) -> Path:
    """The site file, once it has keys and a ledger that was charged for one run."""
    assert medfl("site", "init", load_site(file).state).code == 0
    assert medfl("ledger", "init", file, "--yes").code == 0
    charge(file, "first")
    return file
