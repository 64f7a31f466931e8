"""`Workplace`: where one site keeps what it needs from round to round.

Ledger and outbox of a hospital live in the state folder of its own file, over all studies and
servers. A site with open data keeps them in the run folder, since it makes no lifetime claim.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from medfl.config import SiteConfig, StudyConfig
from medfl.data.cohort import Split, split
from medfl.data.layouts import read_cohort
from medfl.data.transforms import Frame, PatientStore
from medfl.errors import ConfigError, PrivacyError
from medfl.federation.outbox import Outbox
from medfl.federation.study_model import model_spec
from medfl.privacy.ledger import Ledger, Terms

# Public, so that everybody who has the open data gets the same held-out patients.
OPEN_DATA_KEY = b"medfl open data"


class Workplace:
    """One site's files and prepared patients.

    Args:
        site: The site's file.
        folder: Where ledger and outbox are.
    """

    def __init__(self, site: SiteConfig, *, folder: Path) -> None:
        self.site = site
        self._folder = folder
        self._stores: dict[Frame, tuple[PatientStore, PatientStore]] = {}
        self._networks: dict[str, nn.Module] = {}

    @property
    def ledger_folder(self) -> Path:
        """Folder of the privacy ledger."""
        return self._folder / "ledger"

    def open_ledger(self) -> Ledger:
        """Open the ledger; for open data it is made at first use.

        Raises:
            LedgerError: If a hospital's ledger is missing or damaged, or was made for another
                budget than the site's file states now.
        """
        if self.site.purpose == "open-data" and not self.ledger_folder.exists():
            create_ledger(self.site, folder=self.ledger_folder).close()
        ledger = Ledger.open(self.ledger_folder)
        ledger.require(_terms(self.site))
        return ledger

    @cached_property
    def outbox(self) -> Outbox:
        """Updates that were paid for."""
        return Outbox(self._folder / "outbox")

    @cached_property
    def key(self) -> bytes:
        """Key of pseudonyms and of the held-out split."""
        if self.site.purpose == "open-data":
            return OPEN_DATA_KEY
        return _secret_key(self._folder / "site.key")

    @cached_property
    def patients(self) -> Split:
        """The cohort, split into training and held-out patients.

        Raises:
            DataError: If the cohort cannot be read.
            PrivacyError: If it does not have as many training patients as declared.
        """
        parts = split(read_cohort(self.site.data), held_out=self.site.data.held_out, key=self.key)
        if len(parts.training) != self.site.declared_patients:
            raise PrivacyError(
                f"Site {self.site.name}: expected declared_patients = "
                f"{self.site.declared_patients} training patients, found {len(parts.training)} "
                f"(and {len(parts.held_out)} held out).",
                code="declared-patients",
            )
        return parts

    def stores(self, study: StudyConfig) -> tuple[PatientStore, PatientStore]:
        """Training and held-out patients, prepared for a study's frame.

        Raises:
            ConfigError: If the site lacks a modality that the study needs.
            DataError: If the cohort cannot be read.
        """
        frame = self.frame(study)
        if frame not in self._stores:
            cache = self.site.state / "cache"
            training = PatientStore(self.patients.training, frame, cache)
            held_out = PatientStore(self.patients.held_out, frame, cache)
            self._stores[frame] = (training, held_out)
        return self._stores[frame]

    def frame(self, study: StudyConfig) -> Frame:
        """How this site's cases become the study's tensors.

        Raises:
            ConfigError: If the site lacks a modality that the study needs.
        """
        missing = [name for name in study.input.modalities if name not in self.site.data.modalities]
        if missing:
            raise ConfigError(
                f"Site {self.site.name}: expected data.modalities with all of the study's "
                f"{list(study.input.modalities)}, found {list(self.site.data.modalities)}.",
                code="modalities",
            )
        return Frame(
            modalities=study.input.modalities,
            regions=study.input.regions,
            spacing=study.input.spacing,
            label_scheme=self.site.data.label_scheme,
        )

    def network(self, study: StudyConfig) -> nn.Module:
        """The study's network on the site's device; the same object each round.

        Raises:
            ConfigError: If the site's device is not there.
            ModelError: If the network cannot be built or is unfit for DP training.
        """
        device = self.site.device
        if device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(
                f"Site {self.site.name}: expected device = 'cpu' on a machine without CUDA, "
                f"found {device!r}.",
                code="device",
            )
        if study.digest not in self._networks:
            self._networks[study.digest] = (
                model_spec(study).build(seed=study.seed).to(torch.device(device))
            )
        return self._networks[study.digest]


def hospital_workplace(site: SiteConfig) -> Workplace:
    """The workplace of a site whose ledger outlives every run."""
    return Workplace(site, folder=site.state)


def simulated_workplace(site: SiteConfig, *, run_folder: Path) -> Workplace:
    """Where a simulated site keeps its ledger: a hospital's own state, or the run folder."""
    if site.purpose == "hospital":
        return hospital_workplace(site)
    return Workplace(site, folder=run_folder / "sites" / site.name)


def create_ledger(site: SiteConfig, *, folder: Path) -> Ledger:
    """Make the ledger of a site's cohort.

    Raises:
        LedgerError: If there is one already.
    """
    terms = _terms(site)
    return Ledger.create(
        folder,
        cohort=terms.cohort,
        epsilon=terms.epsilon,
        delta=terms.delta,
        purpose=terms.purpose,
    )


def _terms(site: SiteConfig) -> Terms:
    return Terms(
        cohort=site.name,
        epsilon=site.privacy.epsilon,
        delta=site.privacy.delta,
        purpose=site.purpose,
    )


def _secret_key(path: Path) -> bytes:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(32))
    return path.read_bytes()
