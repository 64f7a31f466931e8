"""What each hospital has without the federation, and what it makes of the federated model at home.

A hospital that keeps its model owes nobody noise, so what it could do alone is ordinary training on
its own patients, from the study's start, which is public. That is what joining has to be measured
by, and no baseline with noise is. Nor would it keep a model that is worse than the start: alone it
chooses by cross-validation, as it does with the federated model. Both models would stay inside;
only in a simulation of open data are they scored side by side.
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
from medfl.runs.files import FINAL_MODEL
from medfl.server.progress import Progress
from medfl.site.adaptation import adapt
from medfl.site.own_model import home_recipe
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
        name: ``alone`` is what `medfl adapt` makes of the study's first model, and ``adapted`` what
            it makes of the federated one; a site of one patient keeps the model that it gets.
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
            choose = partial(_chosen, model=start, start=None, does="alone")
        else:
            federated = load_file(out / FINAL_MODEL)
            choose = partial(
                _chosen, model=federated, start=start, does="adapts the federated model"
            )
        task = EvaluateTask(study=study, round=study.training.rounds, distances=True)
        return evaluate(site_state, task, choose(site_state, study, progress=progress))

    return scores


def _chosen(
    site_state: SiteState,
    study: StudyConfig,
    *,
    model: Weights,
    start: Weights | None,
    does: str,
    progress: Progress,
) -> Weights:
    """What `medfl adapt` makes of a model at one site."""
    site, parts = site_state.site, set[str]()

    def watch(part: str, done: int, total: int) -> None:
        if part not in parts:
            parts.add(part)
            progress.phase(f"{does}, {part}")
        progress.advanced(done, total)

    training, _ = site_state.stores(study)
    if len(training) < 2:  # nobody unseen to choose by
        return model
    spec = model_spec(study)
    adaptation = adapt(
        model,
        training,
        spec=spec,
        start=start,
        recipe=home_recipe(spec, steps=site.adapt.steps, seed=study.seed),
        folds=min(site.adapt.folds, len(training)),
        device=site.device,
        watch=watch,
    )
    return dict(adaptation.weights)
