"""What a site does with a message, without Flower: declare, train, evaluate.

The order of `train_update` is the guarantee: the site's policy first, then what was paid for
already, then the charge, then the first step that touches data.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from statistics import fmean

import torch
from torch import nn

from medfl.config import StudyConfig
from medfl.data.cohort import pseudonym
from medfl.data.crops import draw_crops
from medfl.data.transforms import PatientStore
from medfl.errors import PolicyRefused
from medfl.federation.messages import (
    Declaration,
    EvaluateTask,
    PatientScore,
    Proposal,
    Scores,
    SiteUpdate,
    TrainTask,
    Weights,
)
from medfl.federation.workplace import Workplace
from medfl.privacy.charges import Charge
from medfl.privacy.engine import PatientLoss, StepObserver, local_optimizer, train_round
from medfl.privacy.ledger import Permit
from medfl.privacy.noise import SecureNormal
from medfl.privacy.planner import plan_site
from medfl.privacy.policy import check_proposal
from medfl.segmentation.inference import segment
from medfl.segmentation.losses import patient_loss
from medfl.segmentation.metrics import RegionScore, score
from medfl.segmentation.networks import load_trainable, trainable_state

logger = logging.getLogger(__name__)


def declare(workplace: Workplace, proposal: Proposal) -> Declaration:
    """Answer a proposal: the site's public constants and the mechanism that it will run.

    Raises:
        PolicyRefused: If the proposal is weaker than the site's policy.
        BudgetExceeded: If the study does not fit what is left of the budget.
        MedflError: If the site cannot take part (data, modalities, ledger).
    """
    site, study = workplace.site, proposal.study
    # Whatever would make a round fail shall fail here, before anything is charged.
    workplace.stores(study)
    workplace.network(study)
    with workplace.open_ledger() as ledger:
        plan = plan_site(
            study,
            site,
            history=ledger.history(excluding_run=proposal.run),
            private=proposal.private,
        )
        check_proposal(plan.mechanism, rounds=plan.rounds, site=site)
        # A run that goes on after a crash has paid for some of its steps already.
        done = sum(run.steps for run in ledger.spent().by_run if run.run == proposal.run)
        if done < study.total_steps:
            remaining = Charge(mechanism=plan.mechanism, steps=study.total_steps - done)
            ledger.admit(study.id, [remaining])
        head = ledger.head()
    return Declaration(
        site=site.name,
        purpose=site.purpose,
        declared_patients=site.declared_patients,
        weight=site.weight,
        modalities=site.data.modalities,
        label_scheme=site.data.label_scheme,
        delta=plan.delta,
        epsilon_budget=plan.epsilon_budget,
        epsilon=plan.epsilon,
        mechanism=plan.mechanism,
        ledger_sequence=head.sequence,
        ledger_hash=head.hash,
    )


def train_update(
    workplace: Workplace, task: TrainTask, weights: Weights, *, on_step: StepObserver
) -> tuple[SiteUpdate, Weights]:
    """One round at one site: charge, compute, store, release.

    Args:
        workplace: The site.
        task: The server's request.
        weights: The global model.
        on_step: Progress.

    Returns:
        The update and its noisy weights; the stored ones where this request was answered before.

    Raises:
        PolicyRefused: If the task is weaker than the site's policy; nothing was charged.
        BudgetExceeded: If the charge does not fit; nothing was charged.
        MedflError: If the round cannot be computed; what was charged stays charged.
    """
    check_proposal(task.mechanism, rounds=task.study.training.rounds, site=workplace.site)
    if task.round > task.study.training.rounds:
        raise PolicyRefused(
            f"Expected a round <= {task.study.training.rounds}, found {task.round}.",
            code="policy-rounds",
        )
    request = _digest(task, weights)
    stored = workplace.outbox.get(task.message_id, request=request)
    if stored is not None:
        with workplace.open_ledger() as ledger:
            # Once more, in case a crash came between the outbox and the ledger.
            ledger.mark_released(task.message_id, stored.digest)
        return SiteUpdate.model_validate_json(stored.body), stored.weights
    network = workplace.network(task.study)
    load_trainable(network, weights)
    training, _ = workplace.stores(task.study)
    with workplace.open_ledger() as ledger:
        permit = ledger.charge(
            study=task.study.id,
            run=task.run,
            round=task.round,
            message_id=task.message_id,
            mechanism=task.mechanism,
        )
        _train(workplace, task, network, training, permit=permit, on_step=on_step)
        head = ledger.head()
        update = SiteUpdate(
            site=workplace.site.name,
            message_id=task.message_id,
            mechanism=task.mechanism,
            steps=task.mechanism.local_steps,
            ledger_sequence=head.sequence,
            ledger_hash=head.hash,
        )
        released = {name: value.cpu() for name, value in trainable_state(network).items()}
        stored_digest = workplace.outbox.put(
            task.message_id, request=request, body=update.model_dump_json(), weights=released
        )
        ledger.mark_released(task.message_id, stored_digest)
    return update, released


def evaluate(workplace: Workplace, task: EvaluateTask, weights: Weights) -> Scores:
    """Score weights on the site's held-out patients, one mean over cases a patient and region.

    Raises:
        PolicyRefused: Unless the site's policy shares metrics, which only open data may.
    """
    if not workplace.site.privacy.share_metrics:
        raise PolicyRefused(
            "Expected privacy.share_metrics = true for scores of held-out patients.",
            code="policy-metrics",
        )
    torch.set_num_threads(workplace.site.threads)
    network = workplace.network(task.study)
    load_trainable(network, weights)
    _, held_out = workplace.stores(task.study)
    scores: list[PatientScore] = []
    for index, patient in enumerate(workplace.patients.held_out):
        name = pseudonym(patient.patient_id, key=workplace.key)
        by_case = [
            score(
                segment(
                    network,
                    case.image_CDHW,
                    crop_size=task.study.input.crop_size,
                    device=workplace.site.device,
                    overlap=task.study.evaluation.overlap,
                )
                > 0.5,
                case.regions_RDHW,
                regions=task.study.input.regions,
                spacing_mm=case.spacing_mm,
                with_hd95=task.distances,
            )
            for case in held_out.prepared(index)
        ]
        scores.extend(_over_cases(name, by_case))
    return Scores(site=workplace.site.name, scores=tuple(scores))


def _train(
    workplace: Workplace,
    task: TrainTask,
    network: nn.Module,
    training: PatientStore,
    *,
    permit: Permit,
    on_step: StepObserver,
) -> None:
    site, study = workplace.site, task.study
    torch.set_num_threads(site.threads)
    crops = torch.Generator().manual_seed(_seed("crops", study, site.name, task.round))
    # Dropout draws from torch's global generator: seeded here, and put back afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(_seed("network", study, site.name, task.round))
        diagnostics = train_round(
            network,
            mechanism=task.mechanism,
            permit=permit,
            population=len(training),
            loss_of=_loss_of(network, training, study, generator=crops, device=site.device),
            optimizer=local_optimizer(
                network,
                kind=study.training.optimizer,
                learning_rate=study.training.learning_rate,
            ),
            source=_noise_source(task, site.name),
            proximal_mu=study.training.proximal_mu,
            on_step=on_step,
        )
    if diagnostics.discarded:
        logger.warning(
            "Round %d: %d patient gradients were not finite and contributed zero.",
            task.round,
            diagnostics.discarded,
        )


def _loss_of(
    network: nn.Module,
    training: PatientStore,
    study: StudyConfig,
    *,
    generator: torch.Generator,
    device: str,
) -> PatientLoss:
    def loss_of(index: int) -> torch.Tensor:
        image_KCDHW, regions_KRDHW = draw_crops(
            training.prepared(index),
            crop_size=study.input.crop_size,
            count=study.input.crops_per_patient,
            generator=generator,
        )
        return patient_loss(network(image_KCDHW.to(device)), regions_KRDHW.to(device))

    return loss_of


def _noise_source(task: TrainTask, site: str) -> SecureNormal:
    if task.mechanism.noise_origin == "seeded":
        return SecureNormal.seeded(task.study.seed, task.study.id, site, task.round)
    return SecureNormal.from_operating_system()


def _seed(purpose: str, study: StudyConfig, site: str, round_number: int) -> int:
    text = f"{purpose}/{study.seed}/{site}/{round_number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _digest(task: TrainTask, weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(task.model_dump_json().encode())
    for name in sorted(weights):
        digest.update(name.encode() + b"\0" + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _over_cases(patient: str, by_case: list[tuple[RegionScore, ...]]) -> list[PatientScore]:
    rows = []
    for region_scores in zip(*by_case, strict=True):
        distances = [s.hd95_mm for s in region_scores if s.hd95_mm is not None]
        rows.append(
            PatientScore(
                patient=patient,
                region=region_scores[0].region,
                dice=min(1.0, math.fsum(s.dice for s in region_scores) / len(region_scores)),
                hd95_mm=fmean(distances) if distances else None,
            )
        )
    return rows
