"""`behaviour`: what the code in this process does to a few patients, as numbers.

It says nothing of whether that is right. Two behaviours that are equal mean that a bug which was
planted in between changes nothing, so that nobody could have caught it.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bugs.secure_behaviour import secure_sums
from medfl.audit.canary_run import small_federation
from medfl.config import SiteConfig, StudyConfig
from medfl.errors import MedflError
from medfl.privacy import engine
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.ledger.ledger import Agreement, Ledger
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import Clipping, Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.privacy.patients import Patients
from medfl.site import round as site_round
from medfl.site.state import SiteState

_BROKEN, _FAILING = 4, 5  # a patient without a finite gradient, and one without a readable file
_WEIGHTS = (30, 50)


def behaviour(federation: tuple[StudyConfig, list[SiteConfig]]) -> dict[str, str]:
    """What a round does, what patients' losses are, and what is written down.

    Args:
        federation: Of `small_federation`.

    Returns:
        A digest of each part; equal as long as the code is.
    """
    parts: dict[str, Callable[[], list[Any]]] = {
        "round, fixed clipping": lambda: _round("fixed"),
        "round, normalised clipping": lambda: _round("normalised"),
        "losses": lambda: _losses(federation),
        "streams": _streams,
        "ledger": _ledger,
        "secure sums": secure_sums,
    }
    digests = {}
    for name, part in parts.items():
        torch.manual_seed(5)  # what a study's own determinism may do
        try:
            values = part()
        except (MedflError, OSError) as error:
            values = [type(error).__name__]
        digests[name] = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return digests


def tiny_federation(folder: Path) -> tuple[StudyConfig, list[SiteConfig]]:
    """The hospitals of the canary audit, with dropout of layers and of modalities."""
    study, sites = small_federation(folder)
    values = study.model_dump(mode="json")
    values["input"] |= {"missing_modality": "zero-fill", "modality_dropout": 0.4}
    values["network"]["arguments"] |= {"dropout_prob": 0.3}
    return StudyConfig.model_validate_json(json.dumps(values)), sites


class _Sums(nn.Module):
    """Two parameters; a patient's gradient is what it multiplies them with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.zeros(size)) for size in _WEIGHTS)

    def forward(self, gradient: Tensor) -> Tensor:
        return gradient @ torch.cat([self.first, self.second])


def _round(clipping: Clipping) -> list[Any]:
    mechanism = Mechanism(
        sampling_prob=0.4,
        noise_multiplier=0.7,
        clip_norm=0.5,
        clipping=clipping,
        local_steps=8,
        declared_patients=6,
        noise_origin="seeded",
    )
    network = _Sums()
    released: list[list[float]] = []

    def loss_of(index: int, generator: torch.Generator) -> Tensor:
        if index == _FAILING:
            raise OSError("a file that cannot be read")
        gradient = torch.randn(sum(_WEIGHTS), generator=generator) * 10.0 ** (index - 3)
        loss: Tensor = network(gradient * (math.nan if index == _BROKEN else 1.0))
        return loss

    def on_step(*_: int) -> None:
        released.append([*network.first.tolist(), *network.second.tolist()])

    permit = Permit(Charge(mechanism=mechanism, steps=mechanism.local_steps))
    # Through the module, where a bug may stand instead.
    found = engine.train_round(
        network,
        mechanism=mechanism,
        permit=permit,
        patients=Patients(names=tuple("abcdef"), stream=f"behaviour {clipping}", loss_of=loss_of),
        optimizer=engine.local_optimizer(network, kind="sgd", learning_rate=1.0),
        source=SecureNormal.seeded("behaviour", clipping),
        proximal_mu=0.0,
        on_step=on_step,
    )
    return [released, found.drawn, found.discarded, found.failures, permit._left]


def _losses(federation: tuple[StudyConfig, list[SiteConfig]]) -> list[Any]:
    """Of the first site's patients, one after the other and the first once more."""
    study, sites = federation
    with tempfile.TemporaryDirectory() as scratch:
        site = sites[0].model_copy(update={"state": Path(scratch)})
        site_state = SiteState(site, folder=Path(scratch))
        members = frozenset(site_state.members)
        site_state.member_store(study, members=members)[1].verify()
        network = site_state.network(study).train()
        patients = site_state.training_patients(study, network, round_number=1, members=members)
        losses = []
        for index in (*range(len(patients)), 0):
            with torch.no_grad(), patients.randomness(index, step=0) as generator:
                losses.append(float(patients.loss_of(index, generator)))
    return losses


def _streams() -> list[Any]:
    """Whether streams that have to differ are the same."""
    task: Any = SimpleNamespace(
        mechanism=SimpleNamespace(noise_origin="operating-system"),
        study=SimpleNamespace(id="study", seed=1),
        round=1,
    )
    fresh = [SecureNormal.from_operating_system().uniform(8).tolist() for _ in range(2)]
    by_site = [site_round.noise_source(task, site).uniform(8).tolist() for site in "ab"]
    return [fresh[0] == fresh[1], by_site[0] == by_site[1]]


def _ledger() -> list[Any]:
    """How many of four steps are written down, and what the accountant is told."""
    mechanism = Mechanism(
        sampling_prob=0.1,
        noise_multiplier=2.0,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=4,
        declared_patients=20,
    )
    with tempfile.TemporaryDirectory() as scratch:
        ledger = Ledger.create(
            Path(scratch) / "ledger",
            cohort="behaviour",
            epsilon=8.0,
            delta=1e-5,
            purpose="open-data",
            witness=None,
        )
        with ledger:
            agreement = Agreement(
                study="study", proposal="", mechanism=mechanism, members=frozenset(), steps=100
            )
            ledger.agree("run", agreement)
            permit = ledger.charge(
                study="study", run="run", round=1, message_id="message", mechanism=mechanism
            )
            permit.consume()
            return [
                ledger.steps(run="run"),
                permit._left,
                repr(mechanism.event(steps=4)),  # what it costs is remembered by the accountant
            ]
