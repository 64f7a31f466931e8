"""The other runs of a server that are under way, as the ServerApp of one of them sees them.

They have the same hospitals, each of which works on one message at a time: a run has to know for
whom a hospital may be at work first, and to tell it what else is under way.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from medfl.deployment.coordinator.job import Job
from medfl.deployment.lock import is_held
from medfl.errors import FederationError
from medfl.server.run import Neighbour
from medfl.server.run_folder import RunFolder


def neighbours(jobs: Path, *, run: str) -> tuple[Neighbour, ...]:
    """The runs, other than one, that somebody follows now, in the order of their identifiers.

    Args:
        jobs: The server's folder for jobs.
        run: The one.
    """
    found = [job for job in map(_job_at, sorted(jobs.glob("*.json"))) if job and job.run != run]
    return tuple(_neighbour(job) for job in sorted(found, key=lambda job: job.run))


def _job_at(path: Path) -> Job | None:
    """What a command has left that still follows its run."""
    if not is_held(path.with_suffix(".lock")):
        return None
    with suppress(OSError, ValueError):  # it ends at this moment
        return Job.model_validate_json(path.read_bytes())
    return None


def _neighbour(job: Job) -> Neighbour:
    sites: frozenset[str] = frozenset()
    with suppress(FederationError, OSError):  # nobody has agreed yet
        sites = frozenset(said.site for _, said in RunFolder(job.out).declarations())
    return Neighbour(run=job.run, seconds=job.study.aggregation.round_timeout_seconds, sites=sites)
