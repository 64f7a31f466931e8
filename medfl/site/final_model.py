"""What a site does with the final model of a run: it looks at it as at any other, and keeps it.

Nothing is charged, since nothing is computed on a patient. The answer is the same whatever the
patients are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medfl.errors import FederationError, MessageError, PolicyRefused
from medfl.protocol.messages import Finished, FinishTask, Weights
from medfl.protocol.study_model import model_spec, study_model_bytes
from medfl.segmentation.networks import load_trainable
from medfl.site.agreement import agreed
from medfl.site.open_runs import OpenRuns
from medfl.site.round import require_bounded
from medfl.site.run_models import models_of, write_model
from medfl.site.state import SiteState


def receive(site_state: SiteState, task: FinishTask, weights: Weights) -> Finished:
    """Keep the final model of a run in the state folder; see `medfl.site.run_models`.

    Args:
        site_state: The site.
        task: The run, and what the model's file says of it.
        weights: The final model.

    Returns:
        That it is here; the same if it was here before.

    Raises:
        PolicyRefused: If this site did not agree to the run, or was never charged for it: then a
            server could fill the disk at no cost.
        MessageError: If the weights are beyond any model, the run has no name for a folder, or
            another final model of it is here; that one stays.
        ModelError: If the weights are not those of the study's network, or not finite.
        FederationError: If it cannot be stored.
    """
    site = site_state.site
    require_bounded(weights)
    models = models_of(site.state, run=task.run)
    with site_state.open_ledger() as ledger:
        agreement = agreed(ledger, run=task.run, study=task.study)
        steps = ledger.steps(run=task.run)
    mine = task.sites.get(site.name)
    if mine is None or mine.mechanism != agreement.mechanism:
        raise PolicyRefused(
            "Expected the mechanism that this site agreed to for the run, found "
            f"{'another' if mine else 'none'}.",
            code="policy-not-agreed",
        )
    if steps == 0:
        raise PolicyRefused(
            "Expected the final model of a run that this site has trained for, found no charge.",
            code="policy-not-trained",
        )
    load_trainable(model_spec(task.study).build(), weights)
    if models.federated.exists():
        _require_same(models.federated, weights)
    else:
        content = study_model_bytes(
            weights,
            study=task.study,
            round_number=task.study.training.rounds,
            declarations=task.sites,
        )
        write_model(models.federated, content)
    OpenRuns(site).close(task.run)
    return Finished(site=site.name, run=task.run)


def _require_same(path: Path, weights: Weights) -> None:
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):
        raise FederationError(
            f"{path}: expected the final model that came before, found a damaged file; move it "
            "away, and let the coordinator send it again.",
            code="models",
        ) from None
    same = kept.keys() == weights.keys() and all(
        torch.equal(kept[name], weights[name]) for name in kept
    )
    if not same:
        raise MessageError(
            "Expected the final model that came before for this run, found another.",
            code="message-replayed",
        )
