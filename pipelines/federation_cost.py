"""Runs one tiny federation in this process or on Flower's simulation runtime, to be measured.

    python pipelines/federation_cost.py WAY SITES PAYLOAD FOLDER

`federation_scale.py` runs it in a process of its own and reads what it leaves: the run folder, and
the notes of the processes that took part. The last line of output is JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from standing_sites import standing_sites
from tiny_federation import write_sites, write_study

from medfl.config import SiteConfig, StudyConfig
from medfl.server.progress import Silent
from medfl.server.run import Run
from medfl.server.run_folder import RunFolder
from medfl.server.server_app import make_server_app
from medfl.study.in_process_grid import InProcessGrid, run_in_process
from medfl.study.pretraining import initial_weights
from medfl.study.simulation import Engine, prepare_folder, simulate


def main() -> None:
    """Run what the arguments say."""
    way, count, payload, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    study = write_study(folder / "study.toml", way=way, sites=count, payload=payload)
    sites = list(write_sites(folder, sites=count, purpose="open-data").values())
    out = folder / "run"
    prepare_folder(out, study=study, resume=False)
    begin = time.monotonic()
    if way == "server":
        _serve_standing_sites(study, sites, out=out, folder=folder / "keys")
    else:
        engine: Engine = "ray" if way == "ray" else "inprocess"
        simulate(study, sites, out=out, engine=engine, progress=Silent())
    sys.stdout.write(json.dumps({"total_seconds": time.monotonic() - begin}) + "\n")


def _serve_standing_sites(
    study: StudyConfig, sites: Sequence[SiteConfig], *, out: Path, folder: Path
) -> None:
    run_folder = RunFolder(out)
    run = Run(
        study=study,
        folder=run_folder,
        run=run_folder.run_id(),
        private=True,
        variant="federated",
        start=lambda: initial_weights(study, threads=1, advance=lambda *_: None),
        progress=Silent(),
    )
    nodes = {number + 2: {"partition-id": number} for number in range(len(sites))}
    grid = InProcessGrid(standing_sites(study, sites, folder=folder), node_configs=nodes)
    run_in_process(make_server_app(run), grid)


if __name__ == "__main__":
    main()
