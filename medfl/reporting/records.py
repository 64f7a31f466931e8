"""What the files of a run folder hold, one frozen record a row.

Only the keys that a report needs are named; others may stand beside them. JSON has no infinity, so
an infinite epsilon, which means that no privacy is claimed, is written as the text ``inf``.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Variant = Literal["federated", "non-private", "local-only", "initial-only", "threshold"]
Region = Literal["TC", "WT", "ET"]
Modality = Literal["t1n", "t1c", "t2w", "t2f"]
NoiseOrigin = Literal["operating-system", "seeded"]

FIRST_REVISION = 1
"""Of the engine of medfl 0.1, which promised too small a loss."""

VARIANT_ORDER: tuple[Variant, ...] = (
    "federated",
    "non-private",
    "local-only",
    "initial-only",
    "threshold",
)


def _number(value: object) -> object:
    return math.inf if value == "inf" else value


Loss = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Revision = Annotated[int, Field(ge=1)]
Size = tuple[int, int, int]


class Record(BaseModel):
    """One value read from a file: frozen and strictly typed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class StudyInput(Record):
    """Modalities, regions and crops of the study."""

    modalities: tuple[Modality, ...]
    regions: tuple[Region, ...] = Field(min_length=1)
    spacing: tuple[Positive, Positive, Positive] | Literal["native"]
    crop_size: Size
    crops_per_patient: Count


class StudyNetwork(Record):
    """A network by name, with its keyword arguments."""

    name: str
    arguments: dict[str, Any]


class StudyTraining(Record):
    """Rounds, local steps and the local optimizer."""

    rounds: Count
    local_steps: Count
    optimizer: str
    learning_rate: Positive
    proximal_mu: Finite


class StudyAggregation(Record):
    """How site updates become a global model."""

    strategy: str
    server_learning_rate: Positive
    ema_decay: Finite
    min_sites: Count


class StudyStart(Record):
    """A file of `medfl pretrain` that the run started from."""

    file: str
    sha256: str


class StudySynthetic(Record):
    """Public synthetic patients: the starting point, and pictures to show."""

    seed: int
    pretraining_patients: Count
    pretraining_steps: Count
    start: StudyStart | None = None


class Study(Record):
    """`study.json`."""

    id: str
    seed: int
    input: StudyInput
    network: StudyNetwork
    training: StudyTraining
    aggregation: StudyAggregation
    synthetic: StudySynthetic | None


class SitePolicy(Record):
    """The privacy loss that a site accepts at most."""

    epsilon: Positive
    delta: Probability


class Site(Record):
    """One entry of `sites.json`."""

    name: str
    purpose: Literal["hospital", "open-data"]
    declared_patients: Annotated[int, Field(ge=1)]
    weight: Positive
    policy: SitePolicy


class Plan(Record):
    """One entry of `plan.json`: the mechanism that was agreed with a site."""

    site: str
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    sampling_prob: Probability
    clip_norm: Positive
    clipping: str
    local_steps: Count
    rounds: Count
    declared_patients: Count
    divisor: Positive
    delta: Probability


class SiteRound(Record):
    """What one site did in one round."""

    outcome: Literal["admitted", "refused", "rejected", "silent"]
    code: str
    epsilon: Loss
    budget: Positive


class Round(Record):
    """One line of `rounds.jsonl`."""

    round: Count
    seconds: Loss
    variant: Variant = "federated"
    sites: dict[str, SiteRound]


class EventMechanism(Record):
    """The part of a reported mechanism that the plan must agree with, and the engine's revision.

    Attributes:
        revision: medfl 0.1 wrote none.
    """

    sampling_prob: Probability
    noise_multiplier: Annotated[float, Field(ge=0)]
    clip_norm: Positive
    revision: Revision = FIRST_REVISION


class Event(Record):
    """One line of `federation_ledger.jsonl`.

    Attributes:
        presumed: Why no update came; the steps are then taken to have been charged, until the site
            says otherwise. Empty for an update.
    """

    sequence: Count
    round: Count
    site: str
    variant: Variant = "federated"
    mechanism: EventMechanism
    steps: Count
    admitted: bool
    presumed: str = ""


class SitePrivacy(Record):
    """One entry of `privacy.json`: the privacy loss of one site at the end of the run.

    Attributes:
        epsilon_prv: Infinite where the cross-check could not be computed.
        lifetime_epsilon: Of the cohort, after all planned rounds.
        unseen_steps: Of the steps, those charged, or presumed to be, whose result never arrived.
        lost_rounds: Rounds without an admitted update.
        ledger_sequence: Of the head that the site reported last.
        event_key: Public key with which the site signed its events, as hexadecimal text.
        revision: Of the engine that took the steps; medfl 0.1 wrote none.
        affected_steps: Steps that medfl 0.1 charged to the site's ledger, in any run.
    """

    site: str
    delta: Probability
    epsilon_pld: Loss
    epsilon_prv: Loss
    epsilon_rdp: Loss
    epsilon_replace_one: Loss
    epsilon_at: dict[float, Loss]
    mu: Loss
    membership_advantage: Fraction
    tpr_at_1_percent_fpr: Fraction
    steps: Count
    unseen_steps: Count
    lifetime_epsilon: Loss
    budget: Positive
    lost_rounds: Count
    ledger_sequence: Count
    ledger_hash: str
    event_key: str
    noise_origin: NoiseOrigin
    adjacency: Literal["zero-out"]
    revision: Revision = FIRST_REVISION
    affected_steps: Count = 0


class PatientOfSites(Record):
    """The privacy loss of one patient who is at several sites."""

    sites: tuple[str, ...] = Field(min_length=2)
    epsilon: Loss
    delta: Probability


class Federation(Record):
    """`federation.json`: the privacy loss of one patient to all sites together.

    Attributes:
        disjoint: No patient is taken to be at two sites.
        epsilon: Of every patient, with `delta`; see `composition`.
        overlaps: Groups of sites that were declared to share patients.
        any_two_sites: The two that cost a patient of both the most, declared or not; None where
            there is one site only.
        groups: Epsilon of so many patients together, with `delta`.
    """

    disjoint: bool
    epsilon: Loss
    delta: Probability
    composition: Literal[
        "maximum over sites (disjoint patients)", "composed over declared overlaps"
    ]
    overlaps: tuple[PatientOfSites, ...]
    any_two_sites: PatientOfSites | None
    groups: dict[int, Loss]


class Environment(Record):
    """`environment.json`: with what the run was computed.

    Attributes:
        commit: Empty for an installed package.
    """

    medfl: str
    python: str
    torch: str
    monai: str
    opacus: str
    flwr: str
    dp_accounting: str
    numpy: str
    commit: str
    platform: str
    cpu_threads: Count
    config_digest: str
    started: datetime
    command: str


class Score(Record):
    """One row of `metrics.csv`.

    Attributes:
        patient: Pseudonym.
        hd95_mm: None where it was not computed.
    """

    variant: Variant
    round: Count
    site: str
    patient: str
    region: Region
    dice: Fraction
    hd95_mm: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
