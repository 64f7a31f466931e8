"""Runs one small study whose sites work one after the other or side by side, to be measured.

    python pipelines/side_by_side_cost.py JOBS ROUNDS

`benchmark.py` runs it in a process of its own. The last line of output is JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.torch import load_file

from medfl.config import StudyConfig, load_site
from medfl.phantom.hospitals import write_hospitals
from medfl.protocol.messages import weights_digest
from medfl.server.run_folder import RunFolder
from medfl.study.run import run_study

# The first round prepares the patients.
WARM_UP = 1

STUDY: dict[str, Any] = {
    "id": "side-by-side",
    "input": {"modalities": ["t1c", "t2f"], "regions": ["WT", "ET"], "crop_size": [32, 32, 32]},
    "network": {
        "name": "SegResNet",
        "arguments": {"init_filters": 8, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]},
    },
    "privacy": {"epsilon": 8.0, "sampling_prob": 0.5, "noise": "seeded"},
    "training": {"local_steps": 2, "optimizer": "sgd", "learning_rate": 0.5},
    "aggregation": {"strategy": "fedavg", "min_sites": 4},
    "evaluation": {"every": 1000, "pictures": 0},
}


def main() -> None:
    """Run what the arguments say."""
    jobs, rounds = int(sys.argv[1]), int(sys.argv[2])
    training = STUDY["training"] | {"rounds": rounds}
    study = StudyConfig.model_validate_json(json.dumps(STUDY | {"training": training}))
    with tempfile.TemporaryDirectory(prefix="medfl-") as name:
        folder = Path(name)
        files = write_hospitals(
            folder / "hospitals",
            patients=(8, 8, 8, 8),
            shape=(48, 48, 48),
            spacing=(4.0, 4.0, 4.0),
            skull_stripped=True,
            seed=5,
            on_patient=lambda: None,
        )
        begin = time.monotonic()
        run_study(study, [load_site(file) for file in files], out=folder / "run", jobs=jobs)
        total = time.monotonic() - begin
        seconds = [record.seconds for record in RunFolder(folder / "run").rounds()]
        weights = load_file(folder / "run" / "checkpoints" / "final.safetensors")
    result = {
        "sites": len(files),
        "round_seconds": median(seconds[WARM_UP:]),
        "total_seconds": total,
        "weights": weights_digest(weights),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
