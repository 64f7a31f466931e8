"""Other ways to get a model, scored on the same held-out patients as the federation.

They run in the same code with one thing changed: without noise, each hospital alone with noise or
without, adapted at home, all patients in one place, not trained on patients at all, or no network
but one global threshold. Only open data allows them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from medfl.config import SiteConfig, StudyConfig
from medfl.config.study import Baseline
from medfl.data.cohort import pseudonym
from medfl.data.patient_store import PatientStore
from medfl.data.transforms import PreparedCase
from medfl.protocol.messages import PatientScore, Scores, Weights
from medfl.runs.records import Variant
from medfl.segmentation.lesions import score_lesions
from medfl.segmentation.metrics import dice_by_level, score
from medfl.server.progress import Progress
from medfl.server.run_folder import RunFolder
from medfl.site.state import simulated_state
from medfl.study.home_baselines import home_scores
from medfl.study.pooled_baseline import pooled_scores
from medfl.study.side_by_side import PartTeller, Together, share_out
from medfl.study.simulation import Engine, prepare_folder, simulate
from medfl.study.worker import Tell, Work
from medfl.study.workers import Workers, answers

THRESHOLDS = 60


def run_baseline(
    name: Baseline,
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    out: Path,
    engine: Engine,
    start: Weights,
    progress: Progress,
    workers: Workers,
) -> None:
    """Run one baseline and append its scores to the run folder's table.

    Args:
        name: Which one.
        study: The study that it is compared with.
        sites: The study's sites.
        out: The study's run folder, finished.
        engine: What calls the apps.
        start: The study's first global model.
        progress: Who watches.
        workers: Where sites work.

    Raises:
        MedflError: If it cannot be run.
    """
    progress.phase(f"baseline {name}")
    federate = partial(_federate, name=name, study=study, out=out, engine=engine, start=start)
    trained = ("non-private", "local-only", "alone", "adapted", "pooled")
    rounds = study.training.rounds if name in trained else 0
    if name == "non-private":
        scores = federate(name, sites, private=False, progress=progress, workers=workers)
    elif name == "local-only":
        places = share_out(sites, places=workers.jobs, by_patients=True)
        with workers.bench(partial(_alone, federate), hear=Together(progress).hear) as bench:
            parts: list[list[Scores]] = answers(bench, sites, places=places)
        scores = [of_site for part in parts for of_site in part]
    elif name == "alone" or name == "adapted":
        scores = home_scores(
            name, study, sites, out=out, start=start, progress=progress, workers=workers
        )
    elif name == "pooled":
        scores = pooled_scores(
            study, sites, out=out, start=start, progress=progress, workers=workers
        )
    elif name == "initial-only":
        scores = _stored_scores(out, variant="federated", rounds=0)
    else:
        scores = threshold_scores(study, sites, out=out)
    # All at once: a baseline that has rows is taken to be done when a run goes on.
    RunFolder(out).append_scores(scores, variant=name, round_number=rounds)


def _federate(
    part: str,
    members: Sequence[SiteConfig],
    *,
    name: Baseline,
    study: StudyConfig,
    out: Path,
    engine: Engine,
    start: Weights,
    private: bool,
    progress: Progress,
    workers: Workers,
) -> list[Scores]:
    """Run the study again in a folder of its own, by some of its sites."""
    target = out / "baselines" / part
    quiet = _quiet(study, members=len(members))
    begun = target.exists() and bool(RunFolder(target).study_digest())
    if target.exists() and not begun:
        shutil.rmtree(target)  # killed before it had a name: nothing was computed
    prepare_folder(target, study=quiet, resume=begun)
    simulate(
        quiet,
        members,
        out=target,
        engine=engine,
        progress=progress,
        private=private,
        variant=name,
        start=start,
        workers=workers,
    )
    return _stored_scores(target, variant=name, rounds=study.training.rounds)


def _alone(federate: Callable[..., list[Scores]], tell: Tell) -> Work:
    """What runs a federation of one site after the other, each in the process that is asked."""

    def scores(site: SiteConfig) -> list[Scores]:
        return federate(
            f"local-only-{site.name}",
            [site],
            private=True,
            progress=PartTeller(site.name, tell),
            workers=Workers(1),
        )

    return scores


def threshold_scores(study: StudyConfig, sites: Sequence[SiteConfig], *, out: Path) -> list[Scores]:
    """Whole tumour by one threshold on T2-FLAIR, tuned on all training patients of all sites.

    Returns:
        Scores of held-out patients; empty where the study has no T2-FLAIR or no whole tumour.
    """
    if "t2f" not in study.input.modalities or "WT" not in study.input.regions:
        return []
    channel = study.input.modalities.index("t2f")
    region = study.input.regions.index("WT")
    site_states = [
        simulated_state(site, run_folder=out) for site in sites if "t2f" in site.data.modalities
    ]
    if not site_states:
        return []
    levels = torch.linspace(0.5, 3.5, THRESHOLDS)
    training = [
        _dice_by_level(store, levels, channel=channel, region=region)
        for store, _ in (site_state.stores(study) for site_state in site_states)
    ]
    best = float(levels[torch.cat(training).mean(dim=0).argmax()])
    results = []
    for site_state in site_states:
        _, store = site_state.stores(study)
        rows = [
            _score(
                store.prepared(index),
                best,
                patient=pseudonym(patient.patient_id, key=site_state.key),
                channel=channel,
                region=region,
            )
            for index, patient in enumerate(site_state.patients.held_out)
        ]
        results.append(Scores(site=site_state.site.name, scores=tuple(rows)))
    return results


def _score(
    cases: Sequence[PreparedCase], level: float, *, patient: str, channel: int, region: int
) -> PatientScore:
    """Means over a patient's cases, without distances: specks all over an image tell little."""
    by_kind = [
        [
            compare(
                case.image_CDHW[channel : channel + 1] > level,
                case.regions_RDHW[region : region + 1],
                regions=("WT",),
                spacing_mm=case.spacing_mm,
                with_hd95=False,
            )[0].dice
            for case in cases
        ]
        for compare in (score, score_lesions)
    ]
    dice, lesion_dice = map(fmean, by_kind)
    return PatientScore(
        patient=patient,
        region="WT",
        dice=dice,
        hd95_mm=None,
        lesion_dice=lesion_dice,
    )


def _dice_by_level(
    store: PatientStore, levels: torch.Tensor, *, channel: int, region: int
) -> torch.Tensor:
    """Mean Dice over a patient's cases, one row a patient and one column a level."""
    table = np.empty((len(store), len(levels)))
    for index in range(len(store)):
        by_case = [
            dice_by_level(
                case.image_CDHW[channel].numpy(),
                case.regions_RDHW[region].numpy().astype(bool),
                levels=levels.numpy(),
            )
            for case in store.prepared(index)
        ]
        table[index] = np.mean(by_case, axis=0)
    return torch.from_numpy(table)


def _quiet(study: StudyConfig, *, members: int) -> StudyConfig:
    """The study for a baseline: scored at its end only, by the sites that are there.

    It is given its weights, so that it needs no file to start from.
    """
    synthetic = study.synthetic and study.synthetic.model_copy(
        update={"start": None, "public_steps": 0}
    )
    evaluation = study.evaluation.model_copy(
        update={"every": study.training.rounds, "baselines": (), "pictures": 0}
    )
    privacy = study.privacy
    if members == 1:  # there is nobody to add up with: a site alone has noise of its own
        privacy = privacy.model_copy(update={"trust": "local", "colluding_sites": 0})
    return study.model_copy(
        update={
            "evaluation": evaluation,
            "aggregation": study.aggregation.among(members),
            "synthetic": synthetic,
            "privacy": privacy,
        }
    )


def _stored_scores(folder: Path, *, variant: Variant, rounds: int) -> list[Scores]:
    scores: dict[str, list[PatientScore]] = {}
    for row in RunFolder(folder).scores():
        if (row.variant, row.round) == (variant, rounds):
            of_patient = PatientScore(
                patient=row.patient,
                region=row.region,
                dice=row.dice,
                hd95_mm=row.hd95_mm,
                lesion_dice=row.lesion_dice,
                lesion_hd95_mm=row.lesion_hd95_mm,
            )
            scores.setdefault(row.site, []).append(of_patient)
    return [Scores(site=site, scores=tuple(rows)) for site, rows in scores.items()]
