"""All patients in one place: what sharing every image would bring, and no hospital would do.

Ordinary training without noise on the training patients of all sites. It is an upper limit for what
joining can be worth with this network, these patients and so many steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medfl.config import SiteConfig, StudyConfig
from medfl.data.pooled_patients import PooledPatients
from medfl.protocol.messages import EvaluateTask, Scores, Weights
from medfl.protocol.study_model import model_spec
from medfl.segmentation.networks import load_trainable, trainable_state
from medfl.server.progress import Progress
from medfl.site.own_model import home_recipe
from medfl.site.plain_training import train_plainly
from medfl.site.scores import evaluate
from medfl.site.state import simulated_state
from medfl.study.side_by_side import share_out
from medfl.study.simulation import with_one_thread
from medfl.study.worker import Tell, Work
from medfl.study.workers import Workers, answers, one_thread


def pooled_scores(
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    out: Path,
    start: Weights,
    progress: Progress,
    workers: Workers,
) -> list[Scores]:
    """Train on the patients of all sites, and score the model on the held-out patients of each.

    Args:
        study: The study; it takes as many steps as all of its sites alone together.
        sites: Its sites.
        out: Its run folder.
        start: The study's first global model.
        progress: Who watches.
        workers: Where the sites score.

    Raises:
        MedflError: If a patient cannot be prepared.
    """
    members = with_one_thread(sites)
    stores = [simulated_state(site, run_folder=out).stores(study)[0] for site in members]
    pooled = PooledPatients(stores=tuple(stores))
    spec = model_spec(study)
    network = spec.build()
    load_trainable(network, start)
    steps = sum(site.adapt.steps for site in members)
    with one_thread():
        train_plainly(
            network,
            pooled,
            among=range(len(pooled)),
            recipe=home_recipe(spec, steps=steps, seed=study.seed),
            advance=progress.advanced,
        )
    make = partial(_scores, study=study, out=out, weights=trainable_state(network))
    with workers.bench(make, hear=_unheard) as bench:
        places = share_out(members, places=workers.jobs, by_patients=True)
        return answers(bench, members, places=places)


def _scores(tell: Tell, *, study: StudyConfig, out: Path, weights: Weights) -> Work:
    """What scores the model at one site after the other."""
    del tell
    task = EvaluateTask(study=study, round=study.training.rounds, distances=True)
    return lambda site: evaluate(simulated_state(site, run_folder=out), task, weights)


def _unheard(event: object) -> None:
    """Scoring says nothing on the way."""
