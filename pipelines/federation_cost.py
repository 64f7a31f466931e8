"""What federating costs beside training: round time less the time in the noisy steps.

Run by `benchmark.py federation` in a process of its own; prints one JSON line. The sites are tiny,
so that the overhead is seen: it does not grow with the work of a step.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.data.synthetic_hospitals import write_hospitals
from medfl.federation import site_round
from medfl.federation.progress import Silent
from medfl.federation.run_folder import RoundRecord
from medfl.federation.simulation import Engine, prepare_folder, simulate

ROUNDS = 6
STUDY: dict[str, Any] = {
    "id": "overhead",
    "input": {
        "modalities": ["t1n", "t1c", "t2w", "t2f"],
        "regions": ["TC", "WT", "ET"],
        "crop_size": [16, 16, 16],
    },
    "network": {
        "name": "SegResNet",
        "arguments": {"init_filters": 8, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]},
    },
    "privacy": {"epsilon": 8.0, "sampling_prob": 0.3},
    "training": {"rounds": ROUNDS, "local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0},
    "aggregation": {"strategy": "fedavg", "min_sites": 4},
    "evaluation": {"every": 1000, "pictures": 0},
}


class _Rounds(Silent):
    """Notes the seconds of each round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def round_finished(self, record: RoundRecord) -> None:
        """Note them."""
        self.seconds.append(record.seconds)


@contextmanager
def _timed_training() -> Iterator[list[float]]:
    """Times every call of the private training that sites in this process make."""
    seconds: list[float] = []
    original = site_round.train_round

    def timed(*arguments: Any, **keywords: Any) -> Any:
        begin = time.monotonic()
        try:
            return original(*arguments, **keywords)
        finally:
            seconds.append(time.monotonic() - begin)

    site_round.train_round = timed
    try:
        yield seconds
    finally:
        site_round.train_round = original


def main() -> None:
    """Measure one engine, named by the first argument."""
    engine: Engine = "ray" if sys.argv[1] == "ray" else "inprocess"
    logging.getLogger("flwr").setLevel(logging.ERROR)
    study = StudyConfig.model_validate_json(json.dumps(STUDY))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = _sites(folder / "hospitals")
        rounds = _Rounds()
        begin = time.monotonic()
        with _timed_training() as training:
            prepare_folder(folder / "run", study=study, resume=False)
            simulate(study, sites, out=folder / "run", engine=engine, progress=rounds)
        total = time.monotonic() - begin
    # The first round prepares and caches every patient.
    round_seconds = median(rounds.seconds[1:])
    by_round = [sum(training[i : i + len(sites)]) for i in range(0, len(training), len(sites))]
    line = {
        "engine": engine,
        "sites": len(sites),
        "round_seconds": round_seconds,
        "training_seconds": median(by_round[1:]) if by_round else None,
        "total_seconds": total,
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


def _sites(folder: Path) -> list[SiteConfig]:
    files = write_hospitals(
        folder,
        patients=(4, 4, 4, 4),
        shape=(32, 32, 24),
        spacing=(5.6, 5.6, 6.8),
        skull_stripped=True,
        seed=7,
        on_patient=lambda: None,
    )
    return [load_site(file).model_copy(update={"threads": 1}) for file in files]


if __name__ == "__main__":
    main()
