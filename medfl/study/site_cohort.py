"""`SiteCohort`: the patients of one site as a study sees them, to be looked at by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from medfl.config import SiteConfig, StudyConfig
from medfl.data.cohort import Patient, pseudonym
from medfl.data.crops import draw_crops
from medfl.site.state import hospital_state


class SiteCohort:
    """Training and held-out patients of a site, with their files.

    Everything stays on this machine: nothing is charged, and nothing is sent.

    Args:
        site: The site.

    Raises:
        DataError: If the cohort cannot be read.
    """

    def __init__(self, site: SiteConfig) -> None:
        self._state = hospital_state(site)
        split = self._state.patients
        self.training: tuple[Patient, ...] = split.training
        self.held_out: tuple[Patient, ...] = split.held_out

    def pseudonym(self, patient: Patient) -> str:
        """The name under which a run folder knows a patient.

        For open data everybody can compute it; a hospital's needs a key that never leaves it.

        Raises:
            ConfigError: If a hospital's key cannot be read.
        """
        return pseudonym(patient.patient_id, key=self._state.key)

    def draw_crops(
        self, study: StudyConfig, patient: Patient, *, seed: int
    ) -> tuple[Tensor, Tensor]:
        """The crops of a training patient in one step, as training cuts and varies them.

        Args:
            study: Its frame and its crops.
            patient: One of `training`.
            seed: Another one gives another draw.

        Returns:
            float32 image_KCDHW and uint8 regions_KRDHW.

        Raises:
            ConfigError: If the site lacks a modality that the study needs.
            DataError: If the patient cannot be prepared.
            ValueError: If the patient is no training patient of this site.
        """
        store, _ = self._state.stores(study)
        return draw_crops(
            store.prepared(self.training.index(patient)),
            crop_size=study.input.crop_size,
            count=study.input.crops_per_patient,
            generator=torch.Generator().manual_seed(seed),
        )
