"""`simulate`: a whole study on one machine, with the same apps that hospitals run.

Two engines call them: workers of our own, or Flower's simulation runtime. A deployment differs in
where a node finds its site's file, and in threads: here each site has one, whatever its file says,
so that the result depends neither on the engine nor on how many sites work at the same time.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from medfl.config import SiteConfig, StudyConfig
from medfl.errors import ConfigError
from medfl.privacy.engine import StepObserver
from medfl.protocol.flower_log import quiet_flower
from medfl.protocol.messages import Weights
from medfl.runs.records import Variant
from medfl.server.progress import Progress
from medfl.server.run import Run
from medfl.server.run_folder import RunFolder
from medfl.server.server_app import make_server_app
from medfl.server.versions import require_same_versions, write_versions
from medfl.site.client_app import ObserverOf, make_client_app
from medfl.site.state import SiteState, simulated_state
from medfl.study.in_process_grid import InProcessGrid, run_in_process
from medfl.study.ray_engine import places_here, run_on_ray
from medfl.study.side_by_side import SideBySideGrid, share_out
from medfl.study.starting_point import first_weights, keep_starting_point, seen_by_start
from medfl.study.worker import Tell, Work
from medfl.study.workers import Workers, one_thread

Engine = Literal["inprocess", "ray"]


def simulate(
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    out: Path,
    engine: Engine,
    progress: Progress,
    private: bool = True,
    variant: Variant = "federated",
    start: Weights | None = None,
    workers: Workers | None = None,
) -> None:
    """Run a study and leave its run folder behind.

    Args:
        study: The study.
        sites: One file a site; names must differ.
        out: The run folder, as `prepare_folder` left it; a run that stopped there goes on.
        engine: What calls the apps.
        progress: Who watches.
        private: False for the baseline without noise.
        variant: Name under which scores are stored.
        start: First global model; the study's own if absent.
        workers: Where the sites work in-process; one after the other in this process if None.

    Raises:
        MedflError: If the run cannot go on; what was done stays in the folder.
    """
    quiet_flower()
    folder = RunFolder(out)

    def first_model() -> Weights:
        if start is not None:
            return start
        progress.phase("pretraining" if _pretrains(study) else "initial weights")
        weights = first_weights(
            study,
            out=out,
            threads=max(site.threads for site in sites),
            advance=progress.advanced,
        )
        torch.set_num_threads(1)  # a pretraining has the threads of the sites' files
        return weights

    run = Run(
        study=study,
        folder=folder,
        run=folder.run_id(),
        private=private,
        variant=variant,
        start=first_model,
        progress=progress,
        # Flower's simulation runtime numbers its nodes by itself.
        expected={} if engine == "ray" else dict(zip(_names(sites), nodes_of(sites), strict=True)),
        seen=seen_by_start(study, out=out),
        turns=places_here(sites).turns if engine == "ray" else 1,
    )
    server_app, members = make_server_app(run), with_one_thread(sites)
    with one_thread():
        if engine == "ray":
            progress.phase(str(places_here(sites)))
            run_on_ray(server_app, members, run_folder=out)
        elif workers is None or workers.jobs == 1:
            site_states = [simulated_state(site, run_folder=out) for site in members]
            run_in_process(server_app, in_process_grid(site_states, progress=progress))
        else:
            progress.phase(f"sites at once: {workers.jobs}")
            _run_side_by_side(server_app, members, out=out, progress=progress, workers=workers)


def with_one_thread(sites: Sequence[SiteConfig]) -> list[SiteConfig]:
    """The sites as they are simulated: each has one thread, whatever its file says."""
    return [site.model_copy(update={"threads": 1}) for site in sites]


def _run_side_by_side(
    server_app: ServerApp,
    sites: Sequence[SiteConfig],
    *,
    out: Path,
    progress: Progress,
    workers: Workers,
) -> None:
    places = share_out(sites, places=workers.jobs, by_patients=True)
    make = partial(_site_nodes, sites=sites, out=out)
    with workers.bench(make, hear=lambda step: progress.stepped(*step)) as bench:
        nodes = dict(zip(nodes_of(sites), places, strict=True))
        run_in_process(server_app, SideBySideGrid(bench, places=nodes))


def _site_nodes(tell: Tell, *, sites: Sequence[SiteConfig], out: Path) -> Work:
    """Every site's node in one worker, which is asked for some of them only."""
    quiet_flower()

    def observer_of(site: str) -> StepObserver:
        return lambda done, total: tell((site, done, total))

    site_states = [simulated_state(site, run_folder=out) for site in sites]
    app = client_app_of(site_states, observer_of=observer_of)
    grid = InProcessGrid(app, node_configs=nodes_of(site_states))

    def answer(message: Message) -> Message | None:
        # It may have waited for others at this place: its time begins now.
        message.metadata.created_at = time.time()
        return grid.deliver(message)

    return answer


def in_process_grid(site_states: Sequence[SiteState], *, progress: Progress) -> InProcessGrid:
    """The sites as nodes of this process, numbered as given."""

    def observer_of(site: str) -> StepObserver:
        return lambda done, total: progress.stepped(site, done, total)

    app = client_app_of(site_states, observer_of=observer_of)
    return InProcessGrid(app, node_configs=nodes_of(site_states))


def client_app_of(site_states: Sequence[SiteState], *, observer_of: ObserverOf) -> ClientApp:
    """The sites' app where all of them are in this process."""
    return make_client_app(
        lambda context: site_states[int(context.node_config["partition-id"])],
        observer_of=observer_of,
    )


def nodes_of(sites: Sequence[SiteState] | Sequence[SiteConfig]) -> dict[int, dict[str, int]]:
    """The node of each site, in their order, with what tells the app whose it is."""
    return {number + 2: {"partition-id": number} for number in range(len(sites))}


def _names(sites: Sequence[SiteConfig]) -> list[str]:
    return [site.name for site in sites]


def check_sites(study: StudyConfig, sites: Sequence[SiteConfig]) -> None:
    """Refuse a set of sites that cannot run this study.

    Raises:
        ConfigError: If names repeat, sites are too few, an overlap names another site, or baselines
            meet private data.
    """
    names = _names(sites)
    require_distinct(names)
    require_sites(study, names, noun="site files", among="the sites of the run")
    if study.evaluation.baselines:
        private = [site.name for site in sites if not site.privacy.allow_baselines]
        if private:
            raise ConfigError(
                f"Expected evaluation.baselines = [] or sites with privacy.allow_baselines = true, "
                f"found baselines {list(study.evaluation.baselines)} and the sites {private}."
            )


def require_distinct(names: Sequence[str]) -> None:
    """Refuse two sites with one name.

    Raises:
        ConfigError: If names repeat.
    """
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"Expected one file a site, found several with the names {doubled}.")


def require_sites(study: StudyConfig, names: Collection[str], *, noun: str, among: str) -> None:
    """Refuse too few sites, and an overlap that names another one.

    Args:
        study: The study.
        names: Of the sites, each once.
        noun: What they are, for the error.
        among: Where an overlap may name them from, for the error.

    Raises:
        ConfigError: If a rule is broken.
    """
    needed = study.aggregation.min_sites
    if len(names) < needed:
        raise ConfigError(
            f"Expected at least aggregation.min_sites = {needed} {noun}, found {len(names)}."
        )
    strangers = sorted({name for group in study.overlap for name in group.sites} - set(names))
    if strangers:
        raise ConfigError(
            f"Expected overlap.sites among {among} {sorted(names)}, found {strangers}."
        )


def _pretrains(study: StudyConfig) -> bool:
    synthetic = study.synthetic
    return synthetic is not None and synthetic.pretraining_steps > 0 and synthetic.start is None


def prepare_folder(out: Path, *, study: StudyConfig, resume: bool) -> None:
    """Name a new run in an empty folder, or check that a run there can go on.

    Args:
        out: The run folder; must be new or empty, unless `resume`.
        study: The study.
        resume: Go on from the last checkpoint in `out`.

    Raises:
        ConfigError: If the folder does not fit, or another minor version began the run.
        ModelError: If the study names a file to start from that cannot be used.
    """
    if resume:
        begun = RunFolder(out).study_digest() if out.is_dir() else ""
        if begun != study.digest:
            raise ConfigError(
                f"{out}: expected a run of this very study to resume, found "
                f"{'another study' if begun else 'no run'}."
            )
        require_same_versions(out)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out}: expected a new or empty folder, found files; use --resume to continue a run."
        )
    keep_starting_point(study, out=out)
    write_versions(out)
    RunFolder(out).begin(
        run=f"{study.id}-{time.strftime('%Y%m%d')}-{secrets.token_hex(6)}", study=study
    )
