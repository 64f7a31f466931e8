"""What the files of a run folder hold, one frozen record a row.

Keys that no record names are allowed: a later version may have written them. JSON
has no infinity, so an infinite epsilon, which means that no privacy is claimed, is written as the
text ``inf``.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Named again for those who read run folders and nothing else.
from medfl.config.site import Modality as Modality
from medfl.config.site import Purpose as Purpose
from medfl.config.site import Region as Region
from medfl.config.site import Trust

Variant = Literal[
    "federated",
    "non-private",
    "local-only",
    "alone",
    "adapted",
    "pooled",
    "initial-only",
    "threshold",
]
Outcome = Literal["admitted", "refused", "rejected", "silent"]
NoiseOrigin = Literal["operating-system", "seeded"]

FIRST_REVISION = 1
"""Of the engine of medfl 0.1, which promised too small a loss."""

VARIANT_ORDER: tuple[Variant, ...] = get_args(Variant)


def _number(value: object) -> object:
    return math.inf if value == "inf" else value


Loss = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Revision = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """One value of a file: frozen and strictly typed."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", ser_json_inf_nan="constants"
    )


class LossLimit(Record):
    """The privacy loss that a site accepts at most."""

    epsilon: Positive
    delta: Probability


class Site(Record):
    """One entry of `sites.json`."""

    name: str
    purpose: Purpose
    declared_patients: Annotated[int, Field(ge=1)]
    weight: Positive
    policy: LossLimit
    modalities: tuple[Modality, ...]


class Plan(Record):
    """One entry of `plan.json`: the mechanism that was agreed with a site.

    Attributes:
        epsilon: The site's lifetime epsilon after all rounds, as it declared.
        noise_to_signal: Standard deviation of the noise that the site adds, over C and the divisor;
            a share of sigma in a secure sum.
    """

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
    epsilon: Loss
    epsilon_budget: Positive
    noise_to_signal: Loss


class SiteRound(Record):
    """What became of one site's part in a round.

    Attributes:
        outcome: ``admitted``; ``refused`` by the site; ``rejected`` by the server; ``silent``.
        code: Why, if not admitted.
        epsilon: The site's epsilon of this run so far, recomputed from its events.
        budget: The site's lifetime budget.
        steps: Noisy steps that it reported in this round.
    """

    outcome: Outcome
    code: str
    epsilon: Loss
    budget: Positive
    steps: Count


class Round(Record):
    """One line of `rounds.jsonl`: a finished round."""

    round: Count
    seconds: Loss
    variant: Variant = "federated"
    sites: dict[str, SiteRound]


class EventMechanism(Record):
    """A mechanism as a site reported it; see `medfl.privacy.mechanism`.

    Attributes:
        revision: Of the engine; medfl 0.1 wrote none.
        trust: Whether the noise protects the site's own update, or the sum of several.
        honest_sites: How many sites' shares the noise of such a sum is sure to hold.
    """

    sampling_prob: Probability
    noise_multiplier: Annotated[float, Field(ge=0)]
    clip_norm: Positive
    clipping: Literal["fixed", "normalised"]
    local_steps: Count
    declared_patients: Count
    noise_origin: NoiseOrigin
    adjacency: Literal["zero-out"]
    revision: Revision = FIRST_REVISION
    trust: Trust = "local"
    honest_sites: Count = 1


class Event(Record):
    """One line of `federation_ledger.jsonl`: an update, or a round that stayed without one.

    Attributes:
        epsilon: The site's epsilon of this run after the event, recomputed by the server.
        presumed: Why no update came; the steps are then taken to have been charged, until the site
            says otherwise. Empty for an update.
        message_id: Of the request; like all that follows, of updates only.
        ledger_sequence: Of the site's ledger.
        signed: Whether the statement is the site's.
        statement: What the site said, as JSON.
    """

    sequence: Count
    round: Count
    site: str
    variant: Variant = "federated"
    mechanism: EventMechanism
    steps: Count
    admitted: bool
    epsilon: Loss
    presumed: str = ""
    message_id: str = ""
    ledger_sequence: Count = 0
    ledger_hash: str = ""
    signed: bool = False
    statement: str = ""


class DeclaredAfter(Record):
    """One line of `declarations.jsonl`.

    Attributes:
        after_events: How many lines of `federation_ledger.jsonl` came before it.
        declaration: What the site said, as JSON.
    """

    after_events: Count
    declaration: str


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
        epsilon_colluding: Of a secure sum, against the server and so many of the other sites;
            empty where every site's own noise protects it from all of them.
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
    epsilon_colluding: dict[Count, Loss] = {}


class PatientOfSites(Record):
    """The privacy loss of one patient who is at several sites."""

    sites: tuple[str, ...] = Field(min_length=2)
    epsilon: Loss
    delta: Probability


Composition = Literal["maximum over sites (disjoint patients)", "composed over declared overlaps"]
DISJOINT: Composition = "maximum over sites (disjoint patients)"
COMPOSED: Composition = "composed over declared overlaps"


class SecureSum(Record):
    """The sites of a run whose updates were added up in secret.

    Attributes:
        sites: K, all on the roster.
        threshold: t, those that had to stay to the end of a round.
        honest_sites: h, shares of noise that the noise multiplier was made for.
        colluding_sites: c, those that may side with the server within the promise.
    """

    sites: Annotated[int, Field(ge=2)]
    threshold: Annotated[int, Field(ge=1)]
    honest_sites: Annotated[int, Field(ge=1)]
    colluding_sites: Count


class Federation(Record):
    """`federation.json`: the privacy loss of one patient to all sites together.

    Attributes:
        disjoint: No patient is taken to be at two sites.
        epsilon: Of every patient, with `delta`; see `composition`.
        overlaps: Groups of sites that were declared to share patients.
        any_two_sites: The two that cost a patient of both the most, declared or not; None where
            there is one site only.
        groups: Epsilon of so many patients together, with `delta`.
        secure_sum: None where every site's own noise protects it.
    """

    disjoint: bool
    epsilon: Loss
    delta: Probability
    composition: Composition
    overlaps: tuple[PatientOfSites, ...]
    any_two_sites: PatientOfSites | None
    groups: dict[int, Loss]
    secure_sum: SecureSum | None = None


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
    nibabel: str = ""
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
        lesion_dice: Mean over lesions, as BraTS 2023 scores gliomas; None where not computed.
        lesion_hd95_mm: The same of the distance.
    """

    variant: Variant
    round: Count
    site: str
    patient: str
    region: Region
    dice: Fraction
    hd95_mm: Distance | None
    lesion_dice: Fraction | None = None
    lesion_hd95_mm: Distance | None = None


class RunIdentity(Record):
    """`run.json`: which run of which study a folder holds.

    Attributes:
        study: Digest of the study.
    """

    run: str
    study: str


class Pretraining(Record):
    """`pretraining.json`: steps done and in total, while a first model is made."""

    done: Count
    total: Count


class Spent(Record):
    """What one site has spent of its budget at the end of a run."""

    epsilon: Loss
    budget: Positive


class Summary(Record):
    """`summary.json`: a run in a few figures; written last.

    Attributes:
        sites: By site.
        dice: Mean over all held-out patients, by variant and region, of each final model.
        dice_by_site: The same for each site by itself.
        idle: Sites that joined and took part in no round, with the code that they were lost by
            most often.
        undelivered: Hospitals that do not have the final model, with the code of the reason.
        absent: Sites that rounds were begun without, with the rounds and the reasons in words.
    """

    study: str
    minutes: Finite
    sites: dict[str, Spent]
    dice: dict[Variant, dict[Region, Finite]]
    dice_by_site: dict[Variant, dict[str, dict[Region, Finite]]]
    idle: dict[str, str] = {}
    undelivered: dict[str, str] = {}
    absent: dict[str, str] = {}
