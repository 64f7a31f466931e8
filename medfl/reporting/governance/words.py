"""What several documents say in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medfl.reporting import wording
from medfl.reporting.governance.content import Blank
from medfl.reporting.governance.evidence import Doubt, Evidence
from medfl.reporting.texts import Texts
from medfl.runs.records import Modality, Region
from medfl.runs.results import RunResults

Level = Literal["low", "medium", "high"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a part of a document is written from."""

    run: RunResults
    found: Evidence
    texts: Texts


_DOUBTS: dict[Doubt, str] = {
    "none": "doubt.none",
    "overstated": "doubt.overstated",
    "seeded": "doubt.seeded",
    "audit": "doubt.audit",
    "unfinished": "doubt.unfinished",
    "simulation": "doubt.simulation",
    "unknown": "doubt.unknown",
}
_LEVELS: dict[Level, str] = {"low": "level.low", "medium": "level.medium", "high": "level.high"}


def doubt(name: Doubt, texts: Texts, *, rounds: int, planned: int) -> str:
    """One sentence about what stands against a claim.

    Args:
        name: What it is.
        texts: Of the reader's language.
        rounds: In the folder.
        planned: In the study.
    """
    return texts(_DOUBTS[name], done=texts.number(rounds), planned=texts.number(planned))


def level(name: Level, texts: Texts) -> str:
    """``low``, ``medium``, ``high``."""
    return texts(_LEVELS[name])


def controller(texts: Texts, key: str) -> Blank:
    """A place where the controller writes."""
    return Blank(lead=texts("blank.controller"), text=texts(key))


def cell(texts: Texts, key: str) -> Blank:
    """The same in a table, where there is less room."""
    return Blank(lead=texts("blank.cell"), text=texts(key))


def modalities(names: Sequence[Modality], texts: Texts) -> str:
    """The images that were trained on."""
    return texts.listing([wording.modality_name(name, texts) for name in names])


def regions(names: Sequence[Region], texts: Texts) -> str:
    """What the model outlines."""
    return texts.listing([wording.region_name(name, texts).lower() for name in names])
