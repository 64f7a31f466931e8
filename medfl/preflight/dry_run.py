"""A dry run: one training patient through a study's network, forward and backward, no further.

Nothing is charged, because nothing is released: there is no noisy step and no update, the gradient
is thrown away, and only time and memory reach this site's own screen.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import nn

from medfl.config import StudyConfig
from medfl.errors import DataError, MedflError
from medfl.findings import Finding
from medfl.site.state import SiteState

# What getrusage counts in: kibibytes on Linux, bytes on macOS.
_RESIDENT_UNIT = 1 if sys.platform == "darwin" else 1024
_RULE = "one patient through the network; no noise, nothing leaves, nothing is charged"


def dry_run(site_state: SiteState, study: StudyConfig) -> list[Finding]:
    """Prepare one training patient and compute one gradient, as a step of the study would.

    Args:
        site_state: The site; the prepared patient stays in its cache, as in a run.
        study: Its frame, crops and network.

    Returns:
        One finding: a note with time and peak memory, or what was in the way.
    """
    try:
        value = _timed(site_state, study)
    # What torch raises where memory runs out or an operation is missing is a RuntimeError.
    except (MedflError, OSError, RuntimeError, MemoryError) as error:
        return [
            Finding(
                severity="error",
                patient="",
                name=f"study {study.id}",
                rule=_RULE,
                value=str(error),
                fix="Correct what the text names, or ask the coordinator for smaller crops or a "
                "smaller network; then check again.",
                names=True,
            )
        ]
    return [
        Finding(
            severity="note",
            patient="",
            name=f"study {study.id}",
            rule=_RULE,
            value=value,
            fix="Nothing; a step of the study computes this for every patient that is drawn.",
        )
    ]


def _timed(site_state: SiteState, study: StudyConfig) -> str:
    if not site_state.members:
        raise DataError("Expected a training patient, found none.")
    device = torch.device(site_state.site.device)
    network = site_state.network(study)
    torch.set_num_threads(site_state.site.threads)
    patients = site_state.training_patients(
        study, network, round_number=1, members=frozenset(site_state.members[:1])
    )
    _, store = site_state.member_store(study, members=frozenset(patients.names))
    started = time.perf_counter()
    store.prepared(0)
    prepared = time.perf_counter()
    with patients.randomness(0, step=0) as generator:
        patients.loss_of(0, generator).backward()
    finite = _has_finite_gradient(network)
    done = time.perf_counter()
    network.zero_grad(set_to_none=True)
    if not finite:
        raise DataError("Expected a finite gradient, found NaN or infinity.")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RESIDENT_UNIT
    memory = f"{peak / 1e9:.2f} GB peak memory of this process"
    if device.type == "cuda":
        memory += f", {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB on {device}"
    return (
        f"{prepared - started:.2f} s to prepare, {done - prepared:.2f} s forward and backward, "
        f"{memory}"
    )


def _has_finite_gradient(network: nn.Module) -> bool:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
