"""A study on a running server: submit, follow the run folder, account for it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from medfl.config import StudyConfig
from medfl.deployment.coordinator.follower import Follower
from medfl.deployment.coordinator.job import RUN_LOCK, ExpectedSite, Job
from medfl.deployment.coordinator.run_book import RunRecord, RunStopped
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.flower.control import Control, RunState, Unreachable
from medfl.deployment.lock import exclusive, is_held
from medfl.deployment.thin_app import THIN_APP, ThinApp
from medfl.errors import ConfigError, FederationError
from medfl.protocol.study_model import model_spec
from medfl.reporting.report import write_report
from medfl.runs.files import WAITING
from medfl.runs.records import Summary
from medfl.runs.waiting import STARTING, Waiting
from medfl.server.progress import Progress
from medfl.server.run_folder import RunFolder
from medfl.study.run import finish_run
from medfl.study.simulation import prepare_folder, require_sites
from medfl.study.tensorboard_log import TensorBoardLog

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
# A server that is started again goes on with its run.
PATIENCE_SECONDS = 300.0
# A study that begins copies its first model; others wait for that.
START_SECONDS = 120.0
# Flower misses a killed ServerApp only after a minute; one that came to its end says so within
# seconds.
GONE_SECONDS = 30.0

# Flower's, in front of what an error says.
_FLOWERS_WORDS = "ServerApp failed with exception: "

OnBegun = Callable[[RunRecord], None]


def tell_nobody(record: RunRecord) -> None:
    """Where nobody waits for the beginning of a run."""


class RunStates(Protocol):
    """Where it can be asked how far Flower is: the SuperLink's control path."""

    def state(self, run: int) -> RunState:
        """How far a run is."""


def run_deployed_study(
    study: StudyConfig,
    *,
    folder: ServerFolder,
    out: Path,
    resume: bool,
    progress: Progress,
    require_all: bool = False,
    detached: bool = False,
    on_begun: OnBegun = tell_nobody,
    command: str = "",
    app: ThinApp = THIN_APP,
) -> Summary:
    """Run a study with the hospitals that are connected to a server on this machine.

    Args:
        study: The study.
        folder: The server's files.
        out: The run folder, which holds the report in the end.
        resume: Go on with the run in `out`.
        progress: Who watches.
        require_all: Wait for every admitted site, however long that takes.
        detached: Whether it runs without a terminal, for its record.
        on_begun: Told the record of the run when the server has taken it.
        command: The command that repeats the run, for the report; empty if there is none.
        app: What is shipped to the sites; they accept what they pinned.

    Returns:
        The content of ``summary.json``.

    Raises:
        RunStopped: If somebody stopped it.
        MedflError: If the run cannot go on; what was done stays in the folder.
    """
    begin = time.monotonic()
    progress.phase("checking the study")
    check_deployable(study, sites=set(folder.sites()))
    model_spec(study).build(seed=study.seed)
    out = out.resolve()
    with Control(folder) as control:
        sites = _expected(folder, control)

        def prepare() -> RunRecord:
            prepare_folder(out, study=study, resume=resume)
            run = RunFolder(out).run_id()
            return RunRecord.begin(run, study=study.id, out=out, detached=detached)

        with _followed(folder, out=out, prepare=prepare) as record:
            job = Job(run=record.run, study=study, out=out, sites=sites, require_all=require_all)
            with TensorBoardLog(out / "tensorboard", watched=progress) as watched:
                begun = partial(on_begun, record)
                state = _federate(
                    job,
                    folder=folder,
                    control=control,
                    app=app,
                    progress=watched,
                    begun=begun,
                    stopped=partial(folder.book.is_to_stop, record),
                )
            if not state.completed:
                raise FederationError(f"{_why(state)} Continue with --resume.")
            minutes = (time.monotonic() - begin) / 60
            summary = finish_run(
                RunFolder(out), study, minutes=minutes, command=command, progress=progress
            )
            progress.phase("report")
            write_report(out)
    return summary


@contextmanager
def _followed(
    folder: ServerFolder, *, out: Path, prepare: Callable[[], RunRecord]
) -> Iterator[RunRecord]:
    """Follow a run within a `with` block, as the only one of the server in its run folder."""
    with ExitStack() as stack:
        # One at a time: two that begin in the same folder would each find it empty.
        with exclusive(
            folder.start_lock, noun="the start of a study", patience_seconds=START_SECONDS
        ):
            folder.require_no_run_in(out)
            record = prepare()
            stack.enter_context(folder.book.following(record))
        yield record


def _why(state: RunState) -> str:
    details = state.details.removeprefix(_FLOWERS_WORDS).strip()
    return details or "the server's process gave no reason; see the server's logs."


def check_deployable(study: StudyConfig, *, sites: set[str]) -> None:
    """Refuse a study that no hospital may take part in.

    Args:
        study: The study.
        sites: Names of the admitted sites.

    Raises:
        ConfigError: If it has baselines or seeded noise, or needs or names sites that are not
            admitted.
    """
    if study.evaluation.baselines:
        raise ConfigError(
            "Expected evaluation.baselines = [] in a deployment, found "
            f"{list(study.evaluation.baselines)}: baselines on private patients have no guarantee."
        )
    if study.privacy.noise != "operating-system":
        raise ConfigError(
            "Expected privacy.noise = 'operating-system' in a deployment, found "
            f"{study.privacy.noise!r}."
        )
    require_sites(study, sites, noun="admitted sites", among="the admitted sites")


def _expected(folder: ServerFolder, control: Control) -> dict[str, ExpectedSite]:
    try:
        nodes = control.nodes()
    except Unreachable:
        raise FederationError(
            f"{folder.path}: expected a running server (`medfl server start`), found none."
        ) from None
    return {
        name: ExpectedSite(node=nodes.get(site.node_key_pem, 0), event_key=site.event_key)
        for name, site in folder.sites().items()
    }


def _federate(
    job: Job,
    *,
    folder: ServerFolder,
    control: Control,
    app: ThinApp,
    progress: Progress,
    begun: Callable[[], None],
    stopped: Callable[[], bool],
) -> RunState:
    run_folder = RunFolder(job.out)
    done = max((line.round for line in run_folder.rounds()), default=0)
    # In place of what a killed run has left: who looks now sees whom this one is for.
    run_folder.write(
        WAITING, Waiting.begin(done + 1, asked=job.sites, timeout=None, phase=STARTING)
    )
    follower = Follower(run_folder, rounds=job.study.training.rounds, progress=progress)
    progress.phase("waiting for the sites")
    run = control.start(app)
    try:
        with job.posted(folder.jobs, run=run):
            begun()
            return follow(control, run, follower, lock=job.out / RUN_LOCK, stopped=stopped)
    except BaseException:  # also Ctrl-C: nothing goes on that nobody watches
        control.stop(run)
        raise


def follow(
    control: RunStates, run: int, follower: Follower, *, lock: Path, stopped: Callable[[], bool]
) -> RunState:
    """Follow a run to its end.

    Args:
        control: Says how far Flower is.
        run: Flower's number of the run.
        follower: Tells the progress.
        lock: Held by the ServerApp while it works.
        stopped: Whether somebody wants the run to be stopped.

    Returns:
        How it ended.

    Raises:
        RunStopped: If somebody wants it.
        FederationError: If the ServerApp ended without a word, or the server is silent for long.
    """
    heard = time.monotonic()
    worked = math.inf  # when the ServerApp was last seen at work
    while True:
        follower.look()
        if stopped():
            raise RunStopped("The run was stopped. Continue with --resume.")
        if is_held(lock):
            worked = time.monotonic()
        elif time.monotonic() - worked > GONE_SECONDS:
            raise FederationError(
                "The server's process for this run ended without giving a reason; see the "
                "server's logs. Continue with --resume."
            )
        try:
            state = control.state(run)
        except Unreachable:
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise FederationError(
                    f"The server did not answer within {PATIENCE_SECONDS:g} s. Continue with "
                    "--resume."
                ) from None
        else:
            heard = time.monotonic()
            if state.finished:
                follower.look()
                return state
        time.sleep(POLL_SECONDS)
