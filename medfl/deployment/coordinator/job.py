"""`Job`: what the coordinator's command leaves for the ServerApp that Flower starts.

Flower would carry settings of a run to every site. Paths of the server and the sites' keys concern
no site, so they wait in the server's folder under the number of the run; a run that nobody left a
job for does nothing. Beside the job lies a lock, which the command holds for as long as it follows
the run. A ServerApp that nobody follows ends: no privacy is spent for a run that nobody wants.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from medfl.config import StudyConfig
from medfl.config.files import Section
from medfl.deployment.coordinator.server_folder import FOLDER_VARIABLE
from medfl.deployment.lock import LOOK_SECONDS, exclusive, is_held
from medfl.durable import write_atomically
from medfl.errors import FederationError, MessageError
from medfl.protocol.keys import is_successor
from medfl.protocol.messages import Declaration

RUN_LOCK = "run.lock"
"""Held in the run folder by the ServerApp that works on it."""

WAIT_SECONDS = 30.0


class ExpectedSite(Section):
    """A site that may take part.

    Attributes:
        node: Flower's identifier of the node that joined with the site's node key; 0 where the
            server has not registered it yet.
        event_key: The key that was admitted under the site's name, or one that it followed from.
    """

    node: Annotated[int, Field(ge=0)]
    event_key: str


class Job(Section):
    """One run of a study on a deployed server.

    Attributes:
        run: Identifier of the run, which its messages carry.
        study: The study.
        out: The run folder.
        sites: Who may take part, by name.
        require_all: Whether the run waits for all of them.
    """

    run: str
    study: StudyConfig
    out: Path
    sites: dict[str, ExpectedSite]
    require_all: bool = False

    @contextmanager
    def posted(self, folder: Path, *, run: int) -> Iterator[None]:
        """Leave the job for the ServerApp, which works on it within this `with` block only.

        Args:
            folder: The server's folder for jobs.
            run: Flower's number of the run.
        """
        _forget_jobs_of_the_killed(folder)
        path, lock = job_path(folder, run), lock_path(folder, run)
        try:
            with exclusive(lock, noun="a job", patience_seconds=LOOK_SECONDS):
                write_atomically(path, self.model_dump_json().encode(), mode=0o600)
                yield
        finally:
            path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)

    def welcome(self, declaration: Declaration, node: int) -> None:
        """Accept a declaration only from the node and the key that were admitted under its name.

        Raises:
            MessageError: If the site is unknown, or its data are no hospital's.
        """
        site = self.sites.get(declaration.site)
        if (
            site is None
            or site.node != node
            or not is_successor(
                declaration.event_key, of=site.event_key, rotations=declaration.rotations
            )
        ):
            raise MessageError(
                "Expected the keys that were admitted under the site's name.",
                code="declaration-unknown-site",
            )
        if declaration.purpose != "hospital":
            raise MessageError(
                "Expected a hospital with a lifetime ledger.", code="declaration-open-data"
            )


def _forget_jobs_of_the_killed(folder: Path) -> None:
    """Remove what commands left that were killed; those of other runs under way stay."""
    for job in folder.glob("*.json"):
        lock = job.with_suffix(".lock")
        if not is_held(lock):
            job.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def job_path(folder: Path, run: int) -> Path:
    """Where the job of a run lies.

    Args:
        folder: The server's folder for jobs.
        run: Flower's number of the run.
    """
    return folder / f"{run}.json"


def lock_path(folder: Path, run: int) -> Path:
    """The lock that is held for as long as somebody follows a run.

    Args:
        folder: The server's folder for jobs.
        run: Flower's number of the run.
    """
    return folder / f"{run}.lock"


def jobs_folder() -> Path:
    """The server's folder for jobs, as the ServerApp finds it."""
    return Path(os.environ.get(FOLDER_VARIABLE, "")) / "jobs"


def read_job(run: int) -> Job:
    """The job of a run, which is written just after the run was started.

    Raises:
        FederationError: If there is none.
    """
    path = job_path(jobs_folder(), run)
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        return Job.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise FederationError(
            f"Expected a job for run {run} from `medfl server run`, found none."
        ) from None
