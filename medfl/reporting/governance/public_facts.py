"""`PublicFacts`: all that a public document may know of a run.

A public document is made from this value and from nothing else, so it cannot name a hospital, a
study or a folder, nor give a number of patients away. Numbers that others follow from are left out
too: a sampling probability may have been chosen as a batch over the number of patients; with the
noise multiplier and epsilon it could be solved for; a delta is often one over ten times that
number, and the interval of a score tells how many patients it rests on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from medfl.reporting.governance.evidence import Doubt, Evidence, evidence
from medfl.runs.records import Modality, Region
from medfl.runs.results import RunResults

Audited = Literal["no", "passed", "failed"]
Tuning = Literal["not stated", "sites", "public", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class PublicFacts:
    """Facts of a run that concern everybody.

    Attributes:
        found: What the folder shows; its `guesses` are rounded up to a whole per cent.
        epsilon: Of every patient, over all hospitals.
        delta: That epsilon holds with; rounded up to a power of ten.
        secure: Whether updates were added up in secret.
        colluding: How many hospitals may then side with the server.
        overlaps: Whether the study declares patients whom hospitals share.
        scores: Whether scores of single patients left.
        public_start: Whether the first model has seen public patients.
        tuning: What the settings were chosen on, as the study states.
    """

    found: Evidence
    started: datetime
    version: str
    modalities: tuple[Modality, ...]
    regions: tuple[Region, ...]
    rounds: int
    planned: int
    epsilon: float
    delta: float
    secure: bool
    colluding: int
    overlaps: bool
    scores: bool
    public_start: bool
    audited: Audited
    tuning: Tuning

    @property
    def shown(self) -> bool:
        """Whether the folder shows a study of hospitals on machines of their own."""
        return self.found.origin == "deployment"

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """What stands against a claim."""
        return self.found.doubts


def public_facts(run: RunResults) -> PublicFacts:
    """What may be told to everybody."""
    found, agreed = evidence(run), run.federation.secure_sum
    start = run.study.synthetic
    return PublicFacts(
        found=Evidence(
            origin=found.origin,
            doubts=found.doubts,
            guesses=_whole_per_cent(found.guesses),
        ),
        started=run.environment.started,
        version=run.environment.medfl,
        modalities=run.study.input.modalities,
        regions=run.study.input.regions,
        rounds=run.rounds[-1].round,
        planned=run.study.training.rounds,
        epsilon=run.federation.epsilon,
        delta=_power_of_ten(run.federation.delta),
        secure=agreed is not None,
        colluding=agreed.colluding_sites if agreed else 0,
        overlaps=not run.federation.disjoint,
        scores=bool(run.scores),
        public_start=bool(start and start.pretraining_steps and start.collections),
        tuning=_tuning(run),
        audited="no" if run.audit is None else "passed" if run.audit.passed else "failed",
    )


def _tuning(run: RunResults) -> Tuning:
    stated = run.study.tuning
    if stated is None:
        return "not stated"
    if stated.on == "sites":
        return "sites"
    return "public" if stated.collections else "synthetic"


def _whole_per_cent(share: float) -> float:
    return min(1.0, math.ceil(round(100 * share, 9)) / 100)


def _power_of_ten(delta: float) -> float:
    """A larger delta is a weaker claim, and so a true one."""
    return min(1.0, float(f"1e{math.ceil(round(math.log10(delta), 9))}"))
