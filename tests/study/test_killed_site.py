"""A site that is killed has been charged for what it began, and gets nothing back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medfl.privacy.ledger.ledger import Ledger
from medfl.server.progress import Silent
from medfl.study.simulation import prepare_folder, simulate

STUDY: dict[str, Any] = {
    "privacy": {"noise": "operating-system"},
    "training": {"local_steps": 2},
}
CHILD = """
import os, signal, sys
from pathlib import Path
from medfl.config import SiteConfig, StudyConfig
from medfl.server.progress import Silent
from medfl.study.simulation import simulate
from medfl.privacy.ledger.ledger import Ledger

folder, point = Path(sys.argv[1]), sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Fatal(Silent):
    def stepped(self, site, done, total):
        if point == "in the middle of the steps" and site == "east":
            die()

if point == "between outbox and release":
    Ledger.mark_released = die

study = StudyConfig.model_validate_json((folder / "study.json").read_text())
sites = [
    SiteConfig.model_validate_json((folder / f"{name}.json").read_text())
    for name in ("east", "south")
]
simulate(study, sites, out=folder / "run", engine="inprocess", progress=Fatal())
"""


def spent(site: Any) -> Any:
    with Ledger.open(site.state / "ledger") as ledger:
        return ledger.spent()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "paid_again"), [("in the middle of the steps", 1), ("between outbox and release", 0)]
)
def test_a_killed_site_was_charged_before_its_first_step_and_goes_on(
    point: str, paid_again: int, federation: Any
) -> None:
    folder: Path = federation.scratch
    study = federation.study(**STUDY)
    sites = [federation.hospital(name) for name in ("east", "south")]
    for site in sites:
        (folder / f"{site.name}.json").write_text(site.model_dump_json())
    (folder / "study.json").write_text(json.dumps(study.model_dump(mode="json")))
    prepare_folder(folder / "run", study=study, resume=False)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), point],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]

    (run,) = spent(sites[0]).by_run
    assert (run.charges, run.steps, run.released) == (1, 2, 0)
    assert spent(sites[0]).wasted_epsilon == spent(sites[0]).epsilon > 0
    assert spent(sites[1]).by_run == ()

    simulate(study, sites, out=folder / "run", engine="inprocess", progress=Silent())
    (run,) = spent(sites[0]).by_run
    assert (run.charges, run.released) == (2 + paid_again, 2)
    (other,) = spent(sites[1]).by_run
    assert (other.charges, other.released) == (2, 2)
    assert (spent(sites[0]).wasted_epsilon > 0) == bool(paid_again)
    assert spent(sites[0]).epsilon <= 10.0
