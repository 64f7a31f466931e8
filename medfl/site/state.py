"""`SiteState`: where one site keeps what it needs from round to round.

Ledger and outbox of a hospital live in the state folder of its own file, over all studies and
servers. A site with open data keeps them in the run folder, since it makes no lifetime claim.

What takes tensors is imported where it is used: most commands only ask for ledger and keys, and
torch would make each of them seconds slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from medfl.config import SiteConfig, StudyConfig
from medfl.data.cohort import Patient, Split, pseudonym, split
from medfl.data.layouts.survey import read_cohort
from medfl.errors import PrivacyError
from medfl.privacy.ledger.ledger import Ledger, Terms
from medfl.protocol.keys import KEYS, SiteKeys
from medfl.secret_files import secret_key
from medfl.site.audit_log import audit_log_of
from medfl.site.known_patients import (
    images_of,
    marks_of,
    require_one_name_each,
    require_unclaimed,
    witness_of,
)
from medfl.site.outbox import Outbox
from medfl.site.state_folder import CACHE, LEDGER, OUTBOX, SITE_KEY

if TYPE_CHECKING:
    from torch import nn

    from medfl.data.patient_store import PatientStore
    from medfl.data.transforms import Frame
    from medfl.privacy.patients import Patients

# Public, so that everybody who has the open data gets the same held-out patients.
OPEN_DATA_KEY = b"medfl open data"


class SiteState:
    """One site's files and prepared patients.

    Args:
        site: The site's file.
        folder: Where ledger and outbox are.

    Attributes:
        folder: The same.
        rehearsed: Digests of the studies whose network has met their largest patient here, with
            that patient's pseudonym.
    """

    def __init__(self, site: SiteConfig, *, folder: Path) -> None:
        self.site = site
        self.rehearsed: set[tuple[str, str]] = set()
        self.folder = folder
        self._stores: dict[Frame, tuple[PatientStore, PatientStore]] = {}
        self._networks: dict[str, nn.Module] = {}
        self._member_stores: dict[tuple[Frame, frozenset[str]], tuple[list[str], PatientStore]] = {}

    @property
    def ledger_folder(self) -> Path:
        """Folder of the privacy ledger."""
        return self.folder / LEDGER

    def open_ledger(self) -> Ledger:
        """Open the ledger; for open data it is made at first use.

        Raises:
            LedgerError: If a hospital's ledger is missing or damaged, or was made for another
                budget than the site's file states now.
        """
        if self.site.purpose == "open-data" and not self.ledger_folder.exists():
            create_ledger(self.site, folder=self.ledger_folder).close()
        ledger = Ledger.open(
            self.ledger_folder, witness=witness_of(self.site), scribe=audit_log_of(self.site)
        )
        ledger.require(terms_of(self.site))
        return ledger

    def marks(
        self, *, members: frozenset[str] | None = None, held_out: bool = False
    ) -> frozenset[str]:
        """What the witness knows the training patients by; see `known_patients`.

        Args:
            members: Pseudonyms of the patients of a run, where it is about those.
            held_out: Whether it is about those who do not train.

        Raises:
            DataError: If the cohort cannot be read, or one person is in it under two names.
            LedgerError: If the witness cannot be used.
        """
        witness = witness_of(self.site)
        if witness is None:
            return frozenset()
        patients = self.patients.held_out if held_out else self.patients.training
        if members is not None:
            patients = tuple(self._members_among(members).values())
        images = images_of(patients, site=self.site, cache=self.site.state / CACHE)
        require_one_name_each(images, key=self.key)
        return marks_of(images, witness=witness)

    @cached_property
    def outbox(self) -> Outbox:
        """Updates that were paid for."""
        return Outbox(self.folder / OUTBOX)

    def prune_outbox(self, *, older_than_days: float) -> int:
        """Delete released updates of at least this age; see `Outbox.prune`.

        Args:
            older_than_days: Least age in days.

        Returns:
            The number of deleted updates.

        Raises:
            LedgerError: If the ledger, which knows what was released, cannot be trusted.
            ValueError: If the age is out of range.
        """
        with self.open_ledger() as ledger:
            released = {
                entry.content["digest"] for entry in ledger.entries() if entry.kind == "release"
            }
        return self.outbox.prune(released=released, older_than_days=older_than_days)

    @cached_property
    def keys(self) -> SiteKeys:
        """Keys that sign what this site says; for open data they are made at first use.

        Raises:
            ConfigError: If a hospital's keys are missing or damaged.
        """
        folder = self.folder / KEYS
        if self.site.purpose == "open-data" and not folder.exists():
            return SiteKeys.create(folder)
        return SiteKeys.read(folder)

    @cached_property
    def key(self) -> bytes:
        """Key of pseudonyms and of the held-out split."""
        if self.site.purpose == "open-data":
            return OPEN_DATA_KEY
        return secret_key(self.folder / SITE_KEY)

    @cached_property
    def patients(self) -> Split:
        """The cohort, split into training and held-out patients.

        Raises:
            DataError: If the cohort cannot be read.
        """
        return split(read_cohort(self.site.data), held_out=self.site.data.held_out, key=self.key)

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Pseudonyms of the training patients, in their order.

        Raises:
            DataError: If the cohort cannot be read.
        """
        training = self.patients.training
        return tuple(pseudonym(patient.patient_id, key=self.key) for patient in training)

    def require_declared_patients(self) -> None:
        """Check that as many patients as declared would take part in a new run.

        Raises:
            DataError: If the cohort cannot be read.
            PrivacyError: If there are more or fewer.
        """
        if len(self.members) != self.site.declared_patients:
            raise PrivacyError(
                f"Site {self.site.name}: expected declared_patients = "
                f"{self.site.declared_patients} training patients, found {len(self.members)} "
                f"(and {len(self.patients.held_out)} held out).",
                code="declared-patients",
            )

    def stores(self, study: StudyConfig) -> tuple[PatientStore, PatientStore]:
        """Training and held-out patients, prepared for a study's frame.

        Raises:
            ConfigError: If the site lacks a modality that the study needs.
            DataError: If the cohort cannot be read.
        """
        return self.stores_in(self.frame(study))

    def stores_in(self, frame: Frame) -> tuple[PatientStore, PatientStore]:
        """Training and held-out patients, prepared for a frame.

        Raises:
            DataError: If the cohort cannot be read.
        """
        if frame not in self._stores:
            self._stores[frame] = (
                self._store(self.patients.training, frame),
                self._store(self.patients.held_out, frame),
            )
        return self._stores[frame]

    def member_store(
        self, study: StudyConfig, *, members: frozenset[str]
    ) -> tuple[list[str], PatientStore]:
        """Those who took part when a run was agreed to and are still there, with pseudonyms.

        They are looked for among all patients: who leaves the cohort may move somebody else between
        training and held-out patients, and must not decide whether that one is drawn.

        Args:
            study: Its frame.
            members: Pseudonyms of the patients of the run.

        Raises:
            MedflError: As for `stores`.
        """
        frame = self.frame(study)
        if (frame, members) not in self._member_stores:
            present = self._members_among(members)
            store = self._store(tuple(present.values()), frame)
            self._member_stores[frame, members] = (list(present), store)
        return self._member_stores[frame, members]

    def training_patients(
        self,
        study: StudyConfig,
        network: nn.Module,
        *,
        round_number: int,
        members: frozenset[str],
    ) -> Patients:
        """The patients that one round can draw: see `member_store`.

        Who joined since waits for the next run, and who withdrew is not drawn any more.

        Args:
            study: Its crops.
            network: The network that is trained.
            round_number: 1 for the first round.
            members: Pseudonyms of the patients of the run.

        Raises:
            MedflError: As for `stores`.
        """
        from medfl.site.training_patients import training_patients

        names, store = self.member_store(study, members=members)
        return training_patients(
            store,
            names,
            study,
            network,
            site=self.site.name,
            round_number=round_number,
            device=self.site.device,
        )

    def frame(self, study: StudyConfig) -> Frame:
        """How this site's cases become the study's tensors.

        Raises:
            ConfigError: If the site lacks a modality and the study does not say what to do then, or
                if it has none of the study's.
        """
        from medfl.protocol.study_model import model_spec
        from medfl.site.frames import frame_of

        fills = study.input.missing_modality == "zero-fill"
        return frame_of(self.site, model_spec(study), fills=fills, of="study")

    def network(self, study: StudyConfig) -> nn.Module:
        """The study's network on the site's device; the same object each round.

        Raises:
            ConfigError: If the site's device is not there.
            ModelError: If the network cannot be built or is unfit for DP training.
        """
        from medfl.protocol.study_model import model_spec
        from medfl.segmentation.devices import device_named

        device = device_named(self.site.device, where=f"Site {self.site.name}: device")
        if study.digest not in self._networks:
            self._networks[study.digest] = model_spec(study).build(seed=study.seed).to(device)
        return self._networks[study.digest]

    def require_unclaimed(self, patients: Sequence[Patient]) -> None:
        """Check that no other ledger of this machine pays for one of these patients.

        Open data has none that counts: noise and scores of a hospital's patients would be limited
        by nobody.

        Raises:
            DataError: If an image cannot be read.
            LedgerError: If one does.
        """
        own = self.ledger_folder
        require_unclaimed(patients, site=self.site, cache=self.site.state / CACHE, own=own)

    def _members_among(self, members: frozenset[str]) -> dict[str, Patient]:
        """Pseudonym and patient of everybody of a run who is still there."""
        everybody = (*self.patients.training, *self.patients.held_out)
        by_name = {pseudonym(each.patient_id, key=self.key): each for each in everybody}
        return {name: by_name[name] for name in sorted(by_name.keys() & members)}

    def _store(self, patients: Sequence[Patient], frame: Frame) -> PatientStore:
        from medfl.data.patient_store import PatientStore

        if self.site.purpose == "open-data":  # here, since nobody reads an image without a store
            self.require_unclaimed(patients)
        return PatientStore(
            patients,
            frame,
            self.site.state / CACHE,
            cache_bytes=int(self.site.cache_gigabytes * 1e9),
        )


def hospital_state(site: SiteConfig) -> SiteState:
    """The site_state of a site whose ledger outlives every run."""
    return SiteState(site, folder=site.state)


def simulated_state(site: SiteConfig, *, run_folder: Path) -> SiteState:
    """Where a simulated site keeps its ledger: a hospital's own state, or the run folder."""
    if site.purpose == "hospital":
        return hospital_state(site)
    return SiteState(site, folder=run_folder / "sites" / site.name)


def create_ledger(site: SiteConfig, *, folder: Path) -> Ledger:
    """Make the ledger of a site's cohort.

    Raises:
        LedgerError: If there is one already, the witness remembers one here, or another ledger pays
            for one of the patients.
        DataError: If a hospital's cohort cannot be read.
    """
    site_state = hospital_state(site)
    ledger = Ledger.create(
        folder,
        **asdict(terms_of(site)),
        witness=witness_of(site),
        patients=site_state.marks(),
        held_out=site_state.marks(held_out=True),
    )
    log = audit_log_of(site)
    if log is not None:
        log.follow(ledger.entries())
    return ledger


def terms_of(site: SiteConfig) -> Terms:
    """What the ledger of a site has to be made for."""
    return Terms(
        cohort=site.name,
        epsilon=site.privacy.epsilon,
        delta=site.privacy.delta,
        purpose=site.purpose,
    )
