"""What each hospital has without the federation, and what it makes of the federated model at home.

A hospital that keeps its model owes nobody noise, so what it could do alone is ordinary training on
its own patients. That is what joining has to be measured by, and no baseline with noise is. Both
models would stay inside; only in a simulation of open data are they scored side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file

from medfl.config import SiteConfig, StudyConfig
from medfl.protocol.messages import EvaluateTask, Scores, Weights
from medfl.protocol.study_model import model_spec
from medfl.segmentation.networks import load_trainable, trainable_state
from medfl.server.progress import Progress
from medfl.site.adaptation import adapt
from medfl.site.own_model import home_recipe
from medfl.site.plain_training import train_plainly
from medfl.site.scores import evaluate
from medfl.site.state import SiteState, simulated_state
from medfl.study.side_by_side import PartTeller, Together, share_out
from medfl.study.simulation import with_one_thread
from medfl.study.worker import Tell, Work
from medfl.study.workers import Workers, answers

HomeBaseline = Literal["alone", "adapted"]


def home_scores(
    name: HomeBaseline,
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    out: Path,
    start: Weights,
    progress: Progress,
    workers: Workers,
) -> list[Scores]:
    """Make each hospital's own model, and score it on the hospital's held-out patients.

    Args:
        name: ``alone`` trains from the study's first model, ``adapted`` chooses as `medfl adapt`
            does, which may choose the former; a site of one patient keeps the federated model.
        study: The study.
        sites: Its sites.
        out: Its run folder, finished.
        start: The study's first global model.
        progress: Who watches.
        workers: Where the hospitals work.

    Raises:
        MedflError: If a model cannot be made.
    """
    make = partial(_home, name=name, study=study, out=out, start=start)
    members = with_one_thread(sites)
    with workers.bench(make, hear=Together(progress).hear) as bench:
        places = share_out(members, places=workers.jobs, by_patients=False)
        return answers(bench, members, places=places)


def _home(tell: Tell, *, name: HomeBaseline, study: StudyConfig, out: Path, start: Weights) -> Work:
    """What makes and scores the model of one site after the other."""

    def scores(site: SiteConfig) -> Scores:
        site_state, progress = simulated_state(site, run_folder=out), PartTeller(site.name, tell)
        if name == "alone":
            weights = _alone(site_state, study, start=start, progress=progress)
        else:
            weights = _adapted(site_state, study, out=out, start=start, progress=progress)
        task = EvaluateTask(study=study, round=study.training.rounds, distances=True)
        return evaluate(site_state, task, weights)

    return scores


def _alone(
    site_state: SiteState, study: StudyConfig, *, start: Weights, progress: Progress
) -> Weights:
    site = site_state.site
    progress.phase("alone")
    training, _ = site_state.stores(study)
    network = site_state.network(study)
    load_trainable(network, start)
    train_plainly(
        network,
        training,
        among=range(len(training)),
        recipe=home_recipe(model_spec(study), steps=site.adapt.steps, seed=study.seed),
        device=site.device,
        advance=progress.advanced,
    )
    return trainable_state(network)


def _adapted(
    site_state: SiteState,
    study: StudyConfig,
    *,
    out: Path,
    start: Weights,
    progress: Progress,
) -> Weights:
    site, parts = site_state.site, set[str]()

    def watch(part: str, done: int, total: int) -> None:
        if part not in parts:
            parts.add(part)
            progress.phase(f"adapts the federated model, {part}")
        progress.advanced(done, total)

    training, _ = site_state.stores(study)
    federated = load_file(out / "checkpoints" / "final.safetensors")
    if len(training) < 2:  # nobody unseen to choose by
        return federated
    spec = model_spec(study)
    adaptation = adapt(
        federated,
        training,
        spec=spec,
        start=start,
        recipe=home_recipe(spec, steps=site.adapt.steps, seed=study.seed),
        folds=min(site.adapt.folds, len(training)),
        device=site.device,
        watch=watch,
    )
    return dict(adaptation.weights)
