"""What a site does when it is asked for scores: open data only, since scores carry no guarantee."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from medfl.data.cohort import pseudonym
from medfl.data.transforms import PreparedCase
from medfl.errors import PolicyRefused
from medfl.protocol.messages import EvaluateTask, PatientScore, Scores, Weights
from medfl.segmentation.inference import segment
from medfl.segmentation.lesions import LesionScore, score_lesions
from medfl.segmentation.metrics import RegionScore, score
from medfl.segmentation.networks import load_trainable
from medfl.site.state import SiteState


def evaluate(site_state: SiteState, task: EvaluateTask, weights: Weights) -> Scores:
    """Score weights on the site's held-out patients, one mean over cases a patient and region.

    Raises:
        PolicyRefused: Unless the site's policy shares metrics, which only open data may.
    """
    if not site_state.site.privacy.share_metrics:
        raise PolicyRefused(
            "Expected privacy.share_metrics = true for scores of held-out patients.",
            code="policy-metrics",
        )
    torch.set_num_threads(site_state.site.threads)
    network = site_state.network(task.study)
    load_trainable(network, weights)
    _, held_out = site_state.stores(task.study)
    scores: list[PatientScore] = []
    for index, patient in enumerate(site_state.patients.held_out):
        cases = [_score(site_state, task, network, case) for case in held_out.prepared(index)]
        scores.extend(_over_cases(pseudonym(patient.patient_id, key=site_state.key), cases))
    return Scores(site=site_state.site.name, scores=tuple(scores))


def _score(
    site_state: SiteState, task: EvaluateTask, network: nn.Module, case: PreparedCase
) -> list[tuple[RegionScore, LesionScore | None]]:
    """One pair a region."""
    regions, spacing_mm = task.study.input.regions, case.spacing_mm
    predicted = (
        segment(
            network,
            case.image_CDHW,
            window_size=task.study.input.window,
            device=site_state.site.device,
            overlap=task.study.evaluation.overlap,
        )
        > 0.5
    )
    masks = (predicted, case.regions_RDHW)
    whole = score(*masks, regions=regions, spacing_mm=spacing_mm, with_hd95=task.distances)
    if not task.distances:
        return [(one, None) for one in whole]
    return list(
        zip(whole, score_lesions(*masks, regions=regions, spacing_mm=spacing_mm), strict=True)
    )


def _over_cases(
    patient: str, cases: list[list[tuple[RegionScore, LesionScore | None]]]
) -> list[PatientScore]:
    rows = []
    for of_region in zip(*cases, strict=True):
        whole = [one for one, _ in of_region]
        lesions = [one for _, one in of_region if one is not None]
        rows.append(
            PatientScore(
                patient=patient,
                region=whole[0].region,
                dice=min(1.0, math.fsum(one.dice for one in whole) / len(whole)),
                hd95_mm=_mean([one.hd95_mm for one in whole]),
                lesion_dice=_mean([one.dice for one in lesions]),
                lesion_hd95_mm=_mean([one.hd95_mm for one in lesions]),
            )
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    """None where nothing was computed."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
