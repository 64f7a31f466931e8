"""A made-up grid of studies, written through the records that `medfl study run` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from medfl.config import StudyConfig
from medfl.config.study_grid import BASE, Mode
from medfl.durable import write_atomically
from medfl.runs.grid_records import (
    GRID,
    GridCell,
    GridRecord,
    GridScore,
    GridSite,
    GridVariantRecord,
)
from medfl.runs.grid_table import write_table
from medfl.runs.records import Region, Variant
from medfl.runs.results import Guarantee
from tests.run_folders import STUDY

SITES = ("North", "South", "East", "West")
REGIONS: tuple[Region, ...] = ("TC", "WT")
EPSILONS = (8.0, 3.0, 1.0)
SEEDS = (1, 2, 3)
TRUST: tuple[Mode, ...] = ("local", "secure")
PATIENTS = 6
LEVELS: dict[Variant, float] = {
    "initial-only": 0.60,
    "alone": 0.64,
    "non-private": 0.70,
    "pooled": 0.73,
}
GAINS = {"North": 0.05, "South": 0.02, "East": -0.03, "West": 0.03}
"""Of joining, at every epsilon and in every mode."""


@pytest.fixture(scope="session")
def finished_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One grid folder that no test changes, except for its figures and report."""
    return write_grid(tmp_path_factory.mktemp("grid") / "out", variants=(BASE, "other-start"))


def write_grid(
    folder: Path,
    *,
    variants: tuple[str, ...] = (BASE,),
    trust: tuple[Mode, ...] = TRUST,
    models: tuple[Variant, ...] = ("federated", "adapted", *LEVELS),
    guarantee: Guarantee = "given",
) -> Path:
    """A finished grid; every figure in it is made up."""
    record = GridRecord(
        id="made-up-grid",
        medfl="0.2.0",
        finished=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
        study=StudyConfig.model_validate_json(json.dumps(STUDY)),
        sites=tuple(GridSite(name=site, patients=40) for site in SITES),
        seeds=SEEDS,
        trust=trust,
        epsilons=EPSILONS,
        variants=tuple(
            GridVariantRecord(name=name, changes=() if name == BASE else ("synthetic: none",))
            for name in variants
        ),
        cells=tuple(
            GridCell(
                name=f"{variant}-{mode}-{epsilon:g}-{seed}",
                variant=variant,
                trust=mode,
                epsilon=epsilon,
                seed=seed,
                spent=epsilon - 0.01,
                delta=1e-5,
                guarantee=guarantee,
            )
            for variant in variants
            for mode in trust
            for epsilon in EPSILONS
            for seed in SEEDS
        ),
        command="medfl study run grid.toml --out out",
    )
    write_atomically(folder / GRID.name, GRID.text(record).encode())
    rows = [row for variant in variants for row in _rows(variant, trust) if row.model in models]
    write_table(rows, folder=folder)
    return folder


def _rows(variant: str, trust: tuple[Mode, ...]) -> Iterator[GridScore]:
    moved = 0.0 if variant == BASE else -0.05
    for seed in SEEDS:
        for model, level in LEVELS.items():
            yield from _scores(variant, "", None, seed, model, dict.fromkeys(SITES, level + moved))
        for mode in trust:
            for epsilon in EPSILONS:
                lost = 0.03 / epsilon * (1 if mode == "secure" else 2)
                federated = dict.fromkeys(SITES, 0.69 + moved - lost)
                joined = {site: LEVELS["alone"] + moved + GAINS[site] for site in SITES}
                yield from _scores(variant, mode, epsilon, seed, "federated", federated)
                yield from _scores(variant, mode, epsilon, seed, "adapted", joined)


def _scores(
    variant: str,
    trust: Mode | str,
    epsilon: float | None,
    seed: int,
    model: Variant,
    levels: dict[str, float],
) -> Iterator[GridScore]:
    for number, site in enumerate(SITES):
        # The same patients and seeds in every model, so that differences are exact.
        hardness = np.random.default_rng([number]).normal(0, 0.06, size=PATIENTS)
        for patient in range(PATIENTS):
            for region in REGIONS:
                dice = levels[site] + hardness[patient] - 0.02 * number + 0.01 * seed
                dice += 0.1 if region == "WT" else 0.0
                yield GridScore(
                    cell="made-up",
                    variant=variant,
                    trust=trust,  # type: ignore[arg-type]
                    epsilon=epsilon,
                    seed=seed,
                    model=model,
                    site=site,
                    patient=f"{patient:016x}",
                    region=region,
                    measure="dice",
                    value=round(float(dice), 6),
                )
