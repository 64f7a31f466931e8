"""`StudyConfig`: what the coordinator proposes to every hospital.

All of it is public. Nothing here can weaken a site's policy, and the noise multiplier is absent on
purpose: the planner derives it from the target epsilon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medfl.config.aggregation import StudyAggregation
from medfl.config.files import Section, load
from medfl.config.schedule import MAX_ROUNDS, RoundSchedule, StudySchedule
from medfl.config.site import (
    MODALITY_ORDER,
    REGION_ORDER,
    Count,
    Modality,
    Name,
    Positive,
    Region,
    Seed,
    Size,
    Spacing,
    in_order,
)
from medfl.config.study_privacy import MIN_CLIP_NORM, StudyPrivacy
from medfl.config.synthetic import StudySynthetic
from medfl.config.tuning import StudyTuning

Baseline = Literal[
    "non-private", "local-only", "alone", "adapted", "pooled", "initial-only", "threshold"
]
Optimizer = Literal["sgd", "adam", "adamw"]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]

_LARGEST_ARGUMENT, _LONGEST_ARGUMENT = 10**4, 64


class StudyInput(Section):
    """The frame that every image is brought to, and the crops cut from it.

    Attributes:
        spacing: Millimetres per voxel along right, anterior, superior; ``native`` as scanned.
        crop_size: Voxels of one crop.
        crops_per_patient: K, the crops of one patient in one step.
        window_size: Voxels of the window that slides over a whole image, the crop's if absent. A
            larger one shows a convolutional network more around every voxel, at no cost in privacy.
        missing_modality: What a site does that lacks a modality: ``refuse`` to take part, or
            ``zero-fill`` its channel, so that sites with different modalities train together.
        modality_dropout: Probability that training empties a channel of a crop, so that the network
            learns to do without; only with ``zero-fill`` and several modalities.
    """

    modalities: tuple[Modality, ...] = Field(min_length=1)
    regions: tuple[Region, ...] = Field(min_length=1)
    spacing: Spacing | Literal["native"] = "native"
    crop_size: Size
    crops_per_patient: Annotated[int, Field(ge=1, le=1000)] = 2
    window_size: Size | None = None
    missing_modality: Literal["refuse", "zero-fill"] = "refuse"
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        in_order(self.modalities, MODALITY_ORDER, "modalities")
        in_order(self.regions, REGION_ORDER, "regions")
        return self

    @property
    def window(self) -> Size:
        """Voxels of the window that slides over a whole image."""
        return self.window_size or self.crop_size

    @model_validator(mode="after")
    def _dropout_has_a_use(self) -> Self:
        if self.modality_dropout and self.missing_modality == "refuse":
            raise ValueError(
                "expected modality_dropout = 0 with missing_modality = 'refuse', found "
                f"{self.modality_dropout:g}: every site then has all modalities"
            )
        if self.modality_dropout and len(self.modalities) == 1:
            raise ValueError(
                f"expected modality_dropout = 0 with one modality, found "
                f"{self.modality_dropout:g}: a crop without it shows nothing"
            )
        return self


class StudyNetwork(Section):
    """A network of `monai.networks.nets` by name, with its keyword arguments.

    Attributes:
        name: Of the class.
        arguments: Numbers in them are finite and at most 10^4, and lists have at most 64 entries:
            a site builds whatever it accepts, and a list of blocks may not keep it busy endlessly.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    arguments: dict[str, Any] = Field(default_factory=dict)

    @field_validator("arguments")
    @classmethod
    def _bounded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for key, value in arguments.items():
            for leaf in _leaves(value):
                if isinstance(leaf, int | float) and not abs(leaf) <= _LARGEST_ARGUMENT:
                    raise ValueError(
                        f"expected numbers within +-{_LARGEST_ARGUMENT}, found {key} with {leaf:g}"
                    )
        return arguments


def _leaves(value: Any) -> Iterator[Any]:
    """The single values in lists and tables."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    if len(value) > _LONGEST_ARGUMENT:
        raise ValueError(f"expected at most {_LONGEST_ARGUMENT} entries, found {len(value)}")
    for item in value:
        yield from _leaves(item)


class StudyTraining(Section):
    """Rounds, and the local steps of each; no study that anybody runs has a million.

    Attributes:
        optimizer: Of a site, new in every round. ``adamw`` is Adam with a weight decay.
        learning_rate: Of the site's optimizer; the largest of all rounds.
        learning_rate_schedule: Of the site's learning rate.
        trainable: Which parameters of the network are trained: patterns of their names as in file
            names, such as ``conv_final.*``, or ``norms`` for the scales and shifts of all
            normalisation layers. The others stay as the study starts and leave no site, and noise
            is added to those that do alone: its norm grows with the square root of their number.
        weight_decay: With ``sgd`` or ``adamw``: each step takes this share of the weights, times
            the learning rate, off the weights. It comes after the noise and costs no privacy.
    """

    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]
    local_steps: Annotated[int, Field(ge=1, le=10**6)]
    optimizer: Optimizer
    learning_rate: Positive
    learning_rate_schedule: StudySchedule = StudySchedule()
    trainable: Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=100)] = ("*",)
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    proximal_mu: Annotated[float, Field(ge=0, le=1e6)] = 0.0

    @model_validator(mode="after")
    def _decay_has_an_optimizer(self) -> Self:
        if self.optimizer == "adamw" and not self.weight_decay:
            raise ValueError(
                "expected weight_decay > 0 with optimizer = 'adamw', found 0: that is 'adam'"
            )
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError(
                f"expected weight_decay = 0 with optimizer = 'adam', found {self.weight_decay:g}; "
                "use 'adamw', which decays weights beside Adam's step and not through it"
            )
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                "expected learning_rate x weight_decay < 1, the share of the weights that a step "
                f"takes away, found {self.learning_rate * self.weight_decay:g}"
            )
        return self


class StudyEvaluation(Section):
    """When held-out patients are scored, and what the result is compared with.

    Attributes:
        every: Rounds between two evaluations.
        overlap: Fraction of a sliding window that it shares with the next one.
        baselines: Other ways to get a model, scored on the same held-out patients.
        pictures: Synthetic patients to segment and show.
    """

    every: Count = 5
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    baselines: tuple[Baseline, ...] = ()
    pictures: Annotated[int, Field(ge=0, le=12)] = 3


class StudyOverlap(Section):
    """Sites whose patients may be the same people, so that their losses add up.

    A patient may be at all sites of one group; at two sites that no group names together there is
    nobody twice.

    Attributes:
        sites: Two or more, by name.
    """

    sites: tuple[Name, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("expected distinct sites")
        return self


class StudyConfig(Section):
    """One study: a public proposal that every site may accept or refuse.

    Attributes:
        id: The coordinator's name for the study; runs resume under it.
        seed: Of initial weights, crops and augmentation. Never of DP noise or patient draws,
            unless `privacy.noise` is ``seeded``, which only open data allows.
        overlap: Groups of sites that may share patients; without any, nobody is at two sites.
        tuning: What the settings were chosen on; a study need not say.
    """

    id: Name
    seed: Seed = 0
    input: StudyInput
    network: StudyNetwork
    privacy: StudyPrivacy
    training: StudyTraining
    aggregation: StudyAggregation
    evaluation: StudyEvaluation = StudyEvaluation()
    synthetic: StudySynthetic | None = None
    overlap: tuple[StudyOverlap, ...] = ()
    tuning: StudyTuning | None = None

    @property
    def total_steps(self) -> int:
        """T, all local steps of all rounds."""
        return self.training.rounds * self.training.local_steps

    def learning_rate(self, round_number: int) -> float:
        """The sites' learning rate in a round, from 1."""
        training = self.training
        schedule = training.learning_rate_schedule.over(training.rounds)
        return training.learning_rate * schedule.factor(round_number)

    def server_learning_rate(self, round_number: int) -> float:
        """The server's learning rate in a round, from 1."""
        aggregation = self.aggregation
        schedule = aggregation.server_learning_rate_schedule.over(self.training.rounds)
        return aggregation.server_learning_rate * schedule.factor(round_number)

    def clip_norm(self, round_number: int) -> float:
        """The clip norm in a round, from 1."""
        schedule = self.privacy.clip_norm_schedule.over(self.training.rounds)
        return self.privacy.clip_norm * schedule.factor(round_number)

    @property
    def clip_norm_schedule(self) -> RoundSchedule | None:
        """How the clip norm changes; None where it does not."""
        schedule = self.privacy.clip_norm_schedule
        return None if schedule.is_constant else schedule.over(self.training.rounds)

    @property
    def honest_sites(self) -> int:
        """How many shares the noise of a sum is sure to hold; 1 where every site has its own."""
        if self.privacy.trust == "local":
            return 1
        return self.aggregation.min_sites - self.privacy.colluding_sites

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this study, as hexadecimal text."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.training.proximal_mu > 0 and self.aggregation.strategy != "fedprox":
            raise ValueError(
                "expected aggregation.strategy = 'fedprox' where training.proximal_mu > 0, "
                f"found {self.aggregation.strategy!r}"
            )
        return self

    @model_validator(mode="after")
    def _sum_can_be_secure(self) -> Self:
        if self.privacy.trust == "local":
            return self
        training, sites = self.training, self.aggregation.min_sites
        for holds, rule, found in (
            (training.local_steps == 1, "training.local_steps = 1", training.local_steps),
            (training.optimizer == "sgd", "training.optimizer = 'sgd'", training.optimizer),
            (training.weight_decay == 0, "training.weight_decay = 0", training.weight_decay),
            (training.proximal_mu == 0, "training.proximal_mu = 0", training.proximal_mu),
            (
                not self.aggregation.is_robust,
                "a strategy that averages",
                f"aggregation.strategy = {self.aggregation.strategy!r}",
            ),
            (sites >= 2, "aggregation.min_sites >= 2", sites),
            (
                self.honest_sites >= 1,
                "aggregation.min_sites > privacy.colluding_sites",
                f"{sites} with {self.privacy.colluding_sites}",
            ),
        ):
            if not holds:
                raise ValueError(
                    f"expected {rule} with privacy.trust = 'secure', where a round is one noisy "
                    f"sum, found {found}"
                )
        return self

    @model_validator(mode="after")
    def _schedules_fit(self) -> Self:
        for key, schedule in (
            ("privacy.clip_norm_schedule", self.privacy.clip_norm_schedule),
            ("training.learning_rate_schedule", self.training.learning_rate_schedule),
            (
                "aggregation.server_learning_rate_schedule",
                self.aggregation.server_learning_rate_schedule,
            ),
        ):
            try:
                schedule.over(self.training.rounds)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        clip_norm, course = self.privacy.clip_norm, self.clip_norm_schedule
        if course is not None and clip_norm * course.least < MIN_CLIP_NORM:
            raise ValueError(
                f"privacy.clip_norm_schedule: expected a clip norm >= {MIN_CLIP_NORM:g} in every "
                f"round, found {clip_norm * course.least:g}"
            )
        return self


def load_study(path: str | Path) -> StudyConfig:
    """Read a study file; a relative path in it is taken from the file's folder.

    Raises:
        ConfigError: If the file breaks a rule.
    """
    path = Path(path)
    study = load(path, StudyConfig)
    if study.synthetic is None or study.synthetic.start is None:
        return study
    start = study.synthetic.start
    if start.file is None:
        return study
    found = start.model_copy(update={"file": path.resolve().parent / start.file})
    return study.model_copy(
        update={"synthetic": study.synthetic.model_copy(update={"start": found})}
    )
