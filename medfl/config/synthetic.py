"""`StudySynthetic`: synthetic patients of a study, and the model that is pretrained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_serializer, model_validator

from medfl.config.files import Section
from medfl.config.site import Count, Name, Positive, Seed, Sha256, Size, Spacing

Variety = Literal["narrow", "wide", "random"]


class StudyStart(Section):
    """A file of `medfl pretrain` that runs start from, instead of pretraining in every run.

    Attributes:
        file: Where it lies, from the study's file; only its name is part of the study.
        shipped: Instead of that, the name of a file that comes with medfl; `medfl starts` lists
            them.
        sha256: Of the file's content, so that everybody who agrees to the study agrees to it.
        collections: Names of the open-data sites whose patients the file has seen, in alphabetical
            order. The study's guarantee does not cover these patients.
        seen_sha256: Of the list of their images, see `medfl.site.seen_patients`.
    """

    file: Path | None = None
    shipped: Name | None = None
    sha256: Sha256
    collections: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    seen_sha256: Sha256 | None = None

    @field_serializer("file")
    def _name_only(self, file: Path | None) -> str | None:
        return None if file is None else file.name

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if (self.file is None) == (self.shipped is None):
            found = "neither" if self.file is None else "both"
            raise ValueError(f"expected either file or shipped, found {found}")
        return self

    @model_validator(mode="after")
    def _patients_are_named(self) -> Self:
        if self.collections != tuple(sorted(set(self.collections))):
            raise ValueError("expected distinct collections in alphabetical order")
        if bool(self.collections) != (self.seen_sha256 is not None):
            raise ValueError("expected collections and seen_sha256 together, found one of them")
        return self


class StudySynthetic(Section):
    """Public synthetic patients that belong to no site: a starting point, and pictures to show.

    Attributes:
        shape: Voxels of a synthetic scan along right, anterior, superior.
        spacing: Millimetres per voxel of a synthetic scan.
        skull_stripped: False where the hospitals' scans show the whole head.
        variety: How much synthetic patients differ. ``wide`` is for collections of high-grade
            tumours: up to a sixth of the brain, uneven, often cystic, on scans with an uneven
            cortex, remains of the skull and missing ends. ``random`` goes on to looks and tumours
            that no scanner and no hospital has. The hospitals of `medfl phantom` are ``narrow``.
        seed: Never that of a synthetic hospital.
        pretraining_patients: Synthetic patients to train on before round 1.
        pretraining_steps: Steps of that training; 0 starts from random weights.
        randomise: Whether that training varies each crop far beyond what scanners show, in shape
            and in brightness.
        ema_decay: Of an exponential average of the weights over that training's steps, which is
            its outcome then; 0 takes the last weights.
        public_steps: Steps of a further training, on the patients of open data that
            `medfl pretrain` is given, without noise and with crops as hospitals have them. A run
            does not take them itself: it needs a start that has.
        start: A file that was made in this way before, with the same values as here.
    """

    shape: Size
    spacing: Spacing
    skull_stripped: bool
    variety: Variety = "narrow"
    seed: Seed = 0
    pretraining_patients: Count = 60
    pretraining_steps: Annotated[int, Field(ge=0, le=10**6)] = 0
    pretraining_learning_rate: Positive = 2e-3
    randomise: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    public_steps: Annotated[int, Field(ge=0, le=10**6)] = 0
    start: StudyStart | None = None

    @model_validator(mode="after")
    def _start_was_pretrained(self) -> Self:
        if self.start is not None and self.pretraining_steps == 0:
            raise ValueError("expected pretraining_steps >= 1 with start, whose file they describe")
        return self

    @model_validator(mode="after")
    def _patients_were_trained_on(self) -> Self:
        if self.start is not None and bool(self.public_steps) != bool(self.start.collections):
            raise ValueError(
                "expected public_steps >= 1 where start names collections and nowhere else, found "
                f"{self.public_steps} with {list(self.start.collections)}"
            )
        return self

    @property
    def collections(self) -> tuple[str, ...]:
        """Open data whose patients the start has seen: no guarantee of a study covers them."""
        return () if self.start is None else self.start.collections
