"""The ServerApp of a deployment, under the name that the thin app gives."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medfl.deployment.coordinator.job import RUN_LOCK, jobs_folder, lock_path, read_job
from medfl.deployment.coordinator.neighbours import neighbours
from medfl.deployment.coordinator.unblocked_grid import UnblockedGrid
from medfl.deployment.lock import exclusive, is_held
from medfl.errors import FederationError, MedflError
from medfl.server.progress import Silent
from medfl.server.run import Run
from medfl.server.run_folder import RunFolder
from medfl.server.server_app import serve_study
from medfl.study.pretraining_progress import write_progress
from medfl.study.starting_point import first_weights, seen_by_start

# An earlier ServerApp ends when the command that followed it has ended.
EARLIER_SECONDS = 60.0
# Flower lets a node that cannot connect try again within 20 s.
GATHER_SECONDS = 30.0
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that was left for this run; who started it follows the run folder.

    Raises:
        MedflError: If the run cannot go on. Flower hands the text of an error to who started the
            run, and nothing else of it.
    """
    try:
        _lead(grid, context)
    except (MedflError, OSError):
        raise
    except Exception as error:
        log = jobs_folder().parent / "logs" / "superexec.log"
        raise FederationError(
            f"The server's process for this run failed with an unforeseen error: {error!r};"
            f" see {log}."
        ) from error


def _lead(grid: Grid, context: Context) -> None:
    job = read_job(context.run_id)
    folder = RunFolder(job.out)
    run = Run(
        study=job.study,
        folder=folder,
        run=folder.run_id(),
        private=True,
        variant="federated",
        start=lambda: first_weights(
            job.study,
            out=job.out,
            threads=torch.get_num_threads(),
            advance=write_progress(job.out),
        ),
        progress=Silent(),
        welcome=job.welcome,
        expected={name: site.node for name, site in job.sites.items()},
        patience=GATHER_SECONDS,
        require_all=job.require_all,
        seen=seen_by_start(job.study, out=job.out),
        neighbours=partial(neighbours, jobs_folder(), run=job.run),
    )
    with (
        followed(lock_path(jobs_folder(), context.run_id), on_alone=_end),
        exclusive(job.out / RUN_LOCK, noun="a run folder", patience_seconds=EARLIER_SECONDS),
    ):
        serve_study(UnblockedGrid(grid), run)


@contextmanager
def followed(lock: Path, *, on_alone: Callable[[], None]) -> Iterator[None]:
    """Watch, within a `with` block, that somebody follows the run.

    Args:
        lock: Held by who follows.
        on_alone: Called once, from another thread, when nobody holds it any more.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            if not is_held(lock):
                logger.error(
                    "No command follows this run any more, so it ends; --resume continues it."
                )
                on_alone()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _end() -> None:
    # Flower tells its server that the run has ended, so that no site begins anything for it.
    os.kill(os.getpid(), signal.SIGTERM)
