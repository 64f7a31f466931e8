"""Canaries: synthetic patients whose only trace is a direction of their own.

A canary's loss is a huge multiple of one weight of the network, the same on each of its crops: its
gradient points along that weight's axis, is clipped like any other patient's, and no two canaries
of a site share an axis. Whether a canary takes part is a secret fair coin.

In every other round the gradient points the other way. An attacker who knows turns the sums back;
noise that repeats itself from round to round then cancels, and what it hid is in the open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfl.config import SiteConfig, StudyConfig
from medfl.data.cohort import Split, pseudonym
from medfl.data.patient_store import PatientStore
from medfl.errors import ConfigError
from medfl.privacy.patients import Patients
from medfl.protocol.messages import Weights
from medfl.site.state import SiteState

BoolArray = npt.NDArray[np.bool_]

GRADIENT = 1e4
"""Norm of a canary's gradient before clipping: far above any clip norm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Canaries:
    """The canaries of one site.

    Attributes:
        weights: Name of each canary's parameter, and the flat index of the weight in it.
        included: The coins, shape (canaries,); the auditor's secret.
    """

    weights: tuple[tuple[str, int], ...]
    included: BoolArray

    def __len__(self) -> int:
        return len(self.weights)


def draw_canaries(model: Weights, *, count: int, generator: np.random.Generator) -> Canaries:
    """Give each canary a weight of the model and toss its coin.

    Args:
        model: The model to be trained.
        count: Canaries of the site.
        generator: The auditor's randomness; no site and no server may know it.

    Raises:
        ConfigError: If the model has fewer weights than there are canaries.
    """
    places = [(name, index) for name in sorted(model) for index in range(model[name].numel())]
    if len(places) < count:
        raise ConfigError(
            f"Expected at most {len(places)} canaries a site, one a weight of the network, "
            f"found {count}."
        )
    chosen = generator.choice(len(places), size=count, replace=False)
    return Canaries(
        weights=tuple(places[number] for number in chosen),
        included=generator.random(count) < 0.5,
    )


def direction(round_number: int) -> float:
    """Which way the canaries point in a round: 1 or -1 by turns."""
    return 1.0 if round_number % 2 else -1.0


def moved(update: Mapping[str, Tensor], canaries: Canaries, *, round_number: int) -> Tensor:
    """How far an update moves each canary's weight to where its gradient leads.

    Args:
        update: New weights less old ones.
        canaries: Those of the site.
        round_number: Round of the update.

    Returns:
        Shape (canaries,); positive for a canary that took part, were there no noise.
    """
    steps = [update[name].flatten()[index] for name, index in canaries.weights]
    return -direction(round_number) * torch.stack(steps).double()


class AuditedState(SiteState):
    """A site whose training patients are its own and its canaries.

    The number that it declares counts every canary, included or not: one that is not has no
    gradient, which is what zero-out adjacency compares with. That a site has as many patients of
    its own as its file declares is checked as ever.

    Args:
        site: The site's file, which declares its own patients only.
        canaries: Its canaries.
        folder: Where ledger and outbox are.
    """

    def __init__(self, site: SiteConfig, *, canaries: Canaries, folder: Path) -> None:
        super().__init__(_declaring(site, more=len(canaries)), folder=folder)
        self._own = SiteState(site, folder=folder)
        self._canaries = canaries

    @cached_property
    def patients(self) -> Split:
        """The site's own patients."""
        return self._own.patients

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Pseudonyms of the site's own training patients, then of all canaries."""
        return (*self._own.members, *self._names)

    def require_declared_patients(self) -> None:
        """Check the number of the site's own patients."""
        self._own.require_declared_patients()

    def stores(self, study: StudyConfig) -> tuple[PatientStore, PatientStore]:
        """The site's own patients."""
        return self._own.stores(study)

    def member_store(
        self, study: StudyConfig, *, members: frozenset[str]
    ) -> tuple[list[str], PatientStore]:
        """The site's own patients; a canary has no files."""
        return self._own.member_store(study, members=members)

    def training_patients(
        self,
        study: StudyConfig,
        network: nn.Module,
        *,
        round_number: int,
        members: frozenset[str],
    ) -> Patients:
        """The site's own patients, then the canaries."""
        own = self._own.training_patients(
            study, network, round_number=round_number, members=members
        )
        parameters = dict(network.named_parameters())
        crops = study.input.crops_per_patient
        present = [index for index, name in enumerate(self._names) if name in members]

        def loss_of(index: int, generator: torch.Generator) -> Tensor:
            if index < len(own):
                return own.loss_of(index, generator)
            number = present[index - len(own)]
            name, place = self._canaries.weights[number]
            slope = direction(round_number) * GRADIENT if self._canaries.included[number] else 0.0
            by_crop = slope * parameters[name].flatten()[place].expand(crops)
            return by_crop.mean()

        return Patients(
            names=(*own.names, *(self._names[index] for index in present)),
            stream=own.stream,
            loss_of=loss_of,
        )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(
            pseudonym(f"canary {number}", key=self.key) for number in range(len(self._canaries))
        )


def _declaring(site: SiteConfig, *, more: int) -> SiteConfig:
    """The site's file with more declared patients; its rules are checked again."""
    patients = site.declared_patients + more
    # In a secure sum every patient counts alike, so that the weight is their number.
    changed = site.model_copy(update={"declared_patients": patients, "weight": float(patients)})
    return SiteConfig.model_validate_json(changed.model_dump_json())
