"""What a site does when it is asked for scores: open data only, since scores carry no guarantee."""

from __future__ import annotations

import math
from statistics import fmean

import torch

from medfl.data.cohort import pseudonym
from medfl.errors import PolicyRefused
from medfl.protocol.messages import EvaluateTask, PatientScore, Scores, Weights
from medfl.segmentation.inference import segment
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
        name = pseudonym(patient.patient_id, key=site_state.key)
        by_case = [
            score(
                segment(
                    network,
                    case.image_CDHW,
                    window_size=task.study.input.window,
                    device=site_state.site.device,
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
    return Scores(site=site_state.site.name, scores=tuple(scores))


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
