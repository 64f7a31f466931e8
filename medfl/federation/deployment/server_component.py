"""The ServerApp of a deployment, under the name that the thin app gives."""

from __future__ import annotations

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medfl.federation.deployment.job import read_job
from medfl.federation.deployment.lock import exclusive
from medfl.federation.pretraining import initial_weights
from medfl.federation.progress import Silent
from medfl.federation.run_folder import RunFolder
from medfl.federation.server_app import Run, run_study

RUN_LOCK = "run.lock"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that was left for this run; who started it follows the run folder."""
    job = read_job(context.run_id)
    folder = RunFolder(job.out)
    run = Run(
        study=job.study,
        folder=folder,
        run=folder.run_id(),
        private=True,
        variant="federated",
        start=lambda: initial_weights(
            job.study, threads=torch.get_num_threads(), advance=lambda *_: None
        ),
        progress=Silent(),
        welcome=job.welcome,
    )
    # An earlier ServerApp may have outlived the command that started it.
    with exclusive(job.out / RUN_LOCK, noun="a run folder"):
        run_study(grid, run)
