"""What a grid of studies leaves on disk beside its runs, one frozen record a file or row."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from medfl.config import StudyConfig
from medfl.config.study_grid import Mode
from medfl.runs.files import Document
from medfl.runs.records import Count, Finite, Loss, Positive, Probability, Record, Region, Variant
from medfl.runs.results import Guarantee

Measure = Literal["dice", "hd95_mm", "lesion_dice", "lesion_hd95_mm"]

CELLS = "cells"
"""Folder of the runs; a file beside each of them says what it was begun as."""


class CellDefinition(Record):
    """`cells/NAME.json`: what a cell was begun as, before anything of it was computed.

    Attributes:
        study: As its run folder has it.
        sites: By name, without what changes no result.
        seconds: How long the run took; None before its end, and where it was interrupted.
    """

    study: dict[str, Any]
    sites: dict[str, dict[str, Any]]
    seconds: float | None = None


class GridScore(Record):
    """One row of the tidy table.

    Attributes:
        cell: Name of the run that it comes from.
        variant: ``base`` for the study as it is.
        trust: Empty where the model does not depend on it.
        epsilon: The target; None for a model that no noise was added to.
        seed: Of the study.
        model: The federated model, or a baseline.
        patient: Pseudonym, the same in all runs.
    """

    cell: str
    variant: str
    trust: Mode | Literal[""]
    epsilon: Positive | None
    seed: Count
    model: Variant
    site: str
    patient: str
    region: Region
    measure: Measure
    value: Finite


class GridSite(Record):
    """A site of all runs."""

    name: str
    patients: Annotated[int, Field(ge=1)]


class GridVariantRecord(Record):
    """A variant, with its changes as a person would write them."""

    name: str
    changes: tuple[str, ...]


class GridCell(Record):
    """A finished run.

    Attributes:
        spent: Its epsilon, with `delta`, at the site with the largest one.
        guarantee: See `medfl.runs.results.RunResults.guarantee`.
    """

    name: str
    variant: str
    trust: Mode
    epsilon: Positive
    seed: Count
    spent: Loss
    delta: Probability
    guarantee: Guarantee


class GridRecord(Record):
    """`grid.json`: what the table's runs have in common, and in what they differ.

    Attributes:
        study: The study that all of them were made from.
        command: The command that repeats it.
    """

    id: str
    medfl: str
    finished: datetime
    study: StudyConfig
    sites: tuple[GridSite, ...]
    seeds: tuple[Count, ...]
    trust: tuple[Mode, ...]
    epsilons: tuple[Positive, ...]
    variants: tuple[GridVariantRecord, ...]
    cells: tuple[GridCell, ...]
    command: str


GRID = Document("grid.json", TypeAdapter(GridRecord))


def definition_of(cell: str) -> Document[CellDefinition]:
    """The file that says what a cell was begun as, in the folder of the grid."""
    return Document(str(Path(CELLS) / f"{cell}.json"), TypeAdapter(CellDefinition))
