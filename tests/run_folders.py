"""Small made-up run folders, written through the records that a federation writes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medfl.config import StudyConfig
from medfl.config.site import Purpose
from medfl.runs import files
from medfl.runs.metrics_table import COLUMNS
from medfl.runs.records import (
    COMPOSED,
    DISJOINT,
    Environment,
    Event,
    EventMechanism,
    Federation,
    LossLimit,
    NoiseOrigin,
    PatientOfSites,
    Plan,
    Round,
    SecureSum,
    Site,
    SitePrivacy,
    SiteRound,
)
from medfl.server.run_folder import RunFolder

REGIONS = ("TC", "WT", "ET")
SITES = ("North", "South", "East", "West")
LEVELS = {
    "federated": 0.62,
    "non-private": 0.78,
    "local-only": 0.50,
    "initial-only": 0.44,
    "threshold": 0.30,
}
ROUNDS = 10
LOCAL_STEPS = 5
PROBABILITY = 0.25
CLIP = 1.0


@pytest.fixture
def build_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds a run folder under the test's own folder."""

    def build(**options: Any) -> Path:
        return write_run(tmp_path / "run", **options)

    return build


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run folder that no test changes, except for its figures and report."""
    return write_run(tmp_path_factory.mktemp("reporting") / "run")


def write_run(
    folder: Path,
    *,
    sites: Sequence[str] = SITES,
    purpose: Purpose = "open-data",
    noise_multiplier: float = 2.0,
    noise_origin: NoiseOrigin = "operating-system",
    metrics: bool = True,
    pictures: int = 4,
    patients: int = 6,
    overlaps: Sequence[Sequence[str]] = (),
    secure_sum: SecureSum | None = None,
) -> Path:
    """One finished run; every figure in it is made up."""
    run = RunFolder(folder)
    losses = {name: _final_epsilon(number, noise_multiplier) for number, name in enumerate(sites)}
    study = StudyConfig.model_validate_json(json.dumps(_study(secure_sum)))
    run.begin(run="made-up", study=study)
    run.write(files.ENVIRONMENT, ENVIRONMENT)
    run.write(files.SITES, tuple(_site(name, purpose) for name in sites))
    run.write(files.PLAN, tuple(_plan(name, noise_multiplier) for name in sites))
    run.write(
        files.PRIVACY,
        tuple(
            _with_colluding(_privacy(name, loss, noise_origin, purpose), secure_sum)
            for name, loss in losses.items()
        ),
    )
    federation = _federation(losses, [tuple(group) for group in overlaps])
    run.write(files.FEDERATION, federation.model_copy(update={"secure_sum": secure_sum}))
    for number in range(1, ROUNDS + 1):
        run.append_round(_round(number, losses))
    for event in _events(sites, noise_multiplier, noise_origin):
        run.append_event(event)
    if metrics:
        _write_metrics(folder / "metrics.csv", sites, patients)
    for number in range(pictures):
        write_prediction(folder / "predictions" / f"synthetic-{number + 1}", seed=number)
    return folder


def _study(secure_sum: SecureSum | None) -> dict[str, Any]:
    """The study, which sends its updates by themselves or adds them up in secret."""
    if secure_sum is None:
        return STUDY
    privacy = {"trust": "secure", "colluding_sites": secure_sum.colluding_sites}
    least = secure_sum.honest_sites + secure_sum.colluding_sites
    return {
        **STUDY,
        "privacy": {**STUDY["privacy"], **privacy},
        "training": {**STUDY["training"], "local_steps": 1, "optimizer": "sgd"},
        "aggregation": {**STUDY["aggregation"], "min_sites": least},
    }


def _with_colluding(loss: SitePrivacy, secure_sum: SecureSum | None) -> SitePrivacy:
    """Made up too: every further site costs half as much again."""
    if secure_sum is None:
        return loss
    losses = {count: loss.epsilon_pld * 1.5**count for count in range(secure_sum.sites)}
    return loss.model_copy(update={"epsilon_colluding": losses})


def without_lesions(folder: Path) -> None:
    """Leave the scores of a run as medfl 0.1 wrote them."""
    path = folder / "metrics.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    earlier = [name for name in COLUMNS if not name.startswith("lesion_")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, earlier, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_prediction(case: Path, *, seed: int) -> None:
    """A head with a nested tumour, and a prediction that is a little off."""
    case.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (56, 66, 40)), indexing="ij"), axis=-1)
    head = _inside(grid, centre=(28, 33, 20), radii=(24, 29, 18))
    centre = np.array((28, 33, 20)) + generator.integers(-8, 9, size=3) * (1, 1, 0.4)
    truth = _tumour(grid, centre)
    predicted = _tumour(grid, centre + generator.uniform(-2.5, 2.5, size=3))
    flair = head * (100 + 8 * generator.standard_normal(head.shape)) + 60 * (truth > 0)
    affine = np.diag((3.0, 3.0, 4.0, 1.0))
    for name, voxels in (("t2f", flair), ("truth", truth), ("segmentation", predicted)):
        kind = np.float32 if name == "t2f" else np.uint8
        nib.save(nib.Nifti1Image(voxels.astype(kind), affine), case / f"{name}.nii.gz")


def _tumour(grid: np.ndarray, centre: np.ndarray) -> np.ndarray:
    labels = 2 * _inside(grid, centre=centre, radii=(11, 9, 7)).astype(np.uint8)
    labels[_inside(grid, centre=centre, radii=(7, 6, 5))] = 4
    labels[_inside(grid, centre=centre, radii=(4, 3, 3))] = 1
    return labels


def _inside(grid: np.ndarray, *, centre: Any, radii: Any) -> np.ndarray:
    return (((grid - np.asarray(centre)) / np.asarray(radii)) ** 2).sum(axis=-1) <= 1


def _final_epsilon(number: int, noise_multiplier: float) -> float:
    return 7.9 - 0.7 * number if noise_multiplier > 0 else math.inf


STUDY: dict[str, Any] = {
    "id": "made-up-study",
    "seed": 7,
    "input": {
        "modalities": ["t1n", "t1c", "t2w", "t2f"],
        "regions": list(REGIONS),
        "spacing": [2.0, 2.0, 2.0],
        "crop_size": [48, 48, 48],
        "crops_per_patient": 4,
    },
    "network": {"name": "SegResNet", "arguments": {"init_filters": 8}},
    "privacy": {"epsilon": 8.0, "sampling_prob": PROBABILITY},
    "training": {
        "rounds": ROUNDS,
        "local_steps": LOCAL_STEPS,
        "optimizer": "adam",
        "learning_rate": 0.001,
    },
    "aggregation": {"strategy": "fedavg", "ema_decay": 0.9, "min_sites": 3},
    "evaluation": {"every": 2, "baselines": ["non-private", "local-only", "initial-only"]},
    "synthetic": {
        "shape": [96, 96, 64],
        "spacing": [2.0, 2.0, 2.0],
        "skull_stripped": True,
        "seed": 1,
        "pretraining_patients": 64,
        "pretraining_steps": 200,
    },
}

ENVIRONMENT = Environment(
    medfl="0.2.0",
    python="3.11.9",
    torch="2.13.0",
    monai="1.6.1",
    opacus="1.6.0",
    flwr="1.41.0",
    dp_accounting="0.6.0",
    numpy="2.4.6",
    nibabel="5.4.2",
    commit="0123456789abcdef0123456789abcdef01234567",
    platform="Linux-x86_64",
    cpu_threads=2,
    config_digest="ab" * 32,
    started=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
    command="medfl simulate study.toml sites/*.toml",
)


def _site(name: str, purpose: Purpose) -> Site:
    return Site(
        name=name,
        purpose=purpose,
        declared_patients=40,
        weight=40.0,
        policy=LossLimit(epsilon=8.0, delta=1e-5),
        modalities=("t1n", "t1c", "t2w", "t2f"),
    )


def _plan(name: str, noise_multiplier: float) -> Plan:
    return Plan(
        site=name,
        noise_multiplier=noise_multiplier,
        sampling_prob=PROBABILITY,
        clip_norm=CLIP,
        clipping="normalised",
        local_steps=LOCAL_STEPS,
        rounds=ROUNDS,
        declared_patients=40,
        divisor=PROBABILITY * 40,
        delta=1e-5,
        epsilon=8.0,
        epsilon_budget=8.0,
        noise_to_signal=0.31,
    )


def _privacy(name: str, epsilon: float, noise_origin: NoiseOrigin, purpose: Purpose) -> SitePrivacy:
    private = math.isfinite(epsilon)
    return SitePrivacy(
        site=name,
        delta=1e-5,
        epsilon_pld=epsilon,
        epsilon_prv=epsilon + 0.008,
        epsilon_rdp=epsilon * 1.08,
        epsilon_replace_one=epsilon * 1.9,
        epsilon_at={1e-4: epsilon * 0.86, 1e-5: epsilon, 1e-6: epsilon * 1.13},
        mu=epsilon / 4.8,
        membership_advantage=0.5931 if private else 1.0,
        tpr_at_1_percent_fpr=0.2507 if private else 1.0,
        steps=ROUNDS * LOCAL_STEPS,
        unseen_steps=LOCAL_STEPS if name == SITES[1] else 0,
        lifetime_epsilon=epsilon + 0.05 if purpose == "hospital" else epsilon,
        budget=8.0,
        lost_rounds=0 if name != SITES[1] else 1,
        ledger_sequence=11,
        ledger_hash="c0ffee" + "0" * 58,
        event_key="5ea1" * 16,
        noise_origin=noise_origin,
        adjacency="zero-out",
        revision=2,
        affected_steps=0,
    )


def _federation(losses: dict[str, float], overlaps: list[tuple[str, ...]]) -> Federation:
    shared = tuple(_at_sites(sites, losses) for sites in overlaps)
    worst = sorted(losses, key=losses.__getitem__)[-2:]
    return Federation(
        disjoint=not overlaps,
        epsilon=max([*losses.values(), *(group.epsilon for group in shared)]),
        delta=1e-5,
        composition=COMPOSED if overlaps else DISJOINT,
        overlaps=shared,
        any_two_sites=_at_sites(worst, losses) if len(worst) > 1 else None,
        groups={2: 25.41, 5: 165.2},
    )


def _at_sites(sites: Sequence[str], losses: dict[str, float]) -> PatientOfSites:
    together = 0.75 * sum(losses[name] for name in sites)
    return PatientOfSites(sites=tuple(sites), epsilon=together, delta=1e-5)


def _round(number: int, losses: dict[str, float]) -> Round:
    sites = {
        name: SiteRound(
            outcome="silent" if _is_lost(name, number) else "admitted",
            code="timeout" if _is_lost(name, number) else "",
            epsilon=epsilon * math.sqrt(number / ROUNDS),
            budget=8.0,
            steps=LOCAL_STEPS,
        )
        for name, epsilon in losses.items()
    }
    return Round(round=number, seconds=3.2, sites=sites)


def _events(
    sites: Sequence[str], noise_multiplier: float, noise_origin: NoiseOrigin
) -> Iterator[Event]:
    mechanism = EventMechanism(
        sampling_prob=PROBABILITY,
        noise_multiplier=noise_multiplier,
        clip_norm=CLIP,
        clipping="normalised",
        local_steps=LOCAL_STEPS,
        declared_patients=40,
        noise_origin=noise_origin,
        adjacency="zero-out",
        revision=2,
    )
    pairs = [(number, name) for number in range(1, ROUNDS + 1) for name in sites]
    reported = [(number, name) for number, name in pairs if not _is_lost(name, number)]
    for sequence, (number, name) in enumerate(reported, start=1):
        yield Event(
            sequence=sequence,
            round=number,
            site=name,
            message_id=f"{number}-{name}",
            mechanism=mechanism,
            steps=LOCAL_STEPS,
            admitted=True,
            epsilon=1.0,
            ledger_sequence=number,
            ledger_hash="c0ffee",
        )


def _is_lost(name: str, number: int) -> bool:
    return name == SITES[1] and number == 4


def _write_metrics(path: Path, sites: Sequence[str], patients: int) -> None:
    generator = np.random.default_rng(3)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for variant, number, level in _scored():
            regions = ("WT",) if variant == "threshold" else REGIONS
            for site in sites:
                for patient in range(patients):
                    for region in regions:
                        offset = {"TC": 0.0, "WT": 0.12, "ET": -0.06}[region]
                        score = level + offset + generator.normal(0, 0.06)
                        score = float(np.clip(score, 0, 1))
                        measured = number in (0, ROUNDS) and variant != "threshold"
                        measures = (40 * (1 - score), score**2, 374 * (1 - score))
                        others = [f"{value:.3f}" if measured else "" for value in measures]
                        row = [variant, number, site, f"{patient:016x}", region, score, *others]
                        writer.writerow(row)


def _scored() -> Iterator[tuple[str, int, float]]:
    """Variant, round and mean Dice: the federated model grows from the starting model."""
    start, end = LEVELS["initial-only"], LEVELS["federated"]
    for number in range(0, ROUNDS + 1, 2):
        yield "federated", number, start + (end - start) * number / ROUNDS
    yield "non-private", ROUNDS, LEVELS["non-private"]
    yield "local-only", ROUNDS, LEVELS["local-only"]
    yield "initial-only", 0, start
    yield "threshold", 0, LEVELS["threshold"]
