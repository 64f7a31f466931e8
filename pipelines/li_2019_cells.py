"""The cells of `li_2019.py`: federations that share updates as Li et al. 2019 did.

Local training is ordinary: Adam, without clipping of patients and without noise. Only what a site
sends is limited, and only by the sparse vector technique does that promise anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from sparse_vector import SparseVector, largest

from medfl.config import SiteConfig, StudyConfig
from medfl.config.site import Region
from medfl.data.crops import draw_crops
from medfl.durable import write_atomically
from medfl.errors import ConfigError
from medfl.protocol.messages import EvaluateTask, Weights
from medfl.protocol.study_model import model_spec
from medfl.reporting.estimates import PatientKey
from medfl.segmentation.heads import heads_of
from medfl.segmentation.losses import supervised_loss
from medfl.segmentation.networks import load_trainable, trainable_state
from medfl.site.scores import evaluate
from medfl.site.state import SiteState, simulated_state
from medfl.study.workers import one_thread

BATCH_PATIENTS = 2
EPSILONS = (math.inf, 1e7, 1e5, 1e3, 8.0)
"""Of all rounds together."""

Scores = dict[Region, dict[PatientKey, float]]

console = Console()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to share.

    Attributes:
        share: Part of an update's numbers that is sent.
        epsilon: True epsilon of all rounds by the sparse vector technique; infinite for no noise.
        by_size: Whether the largest numbers are sent, without any technique.
        keeps_moments: Whether a site goes on with Adam's moments of the round before.
    """

    share: float
    epsilon: float
    by_size: bool = False
    keeps_moments: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        epsilon = "none" if math.isinf(self.epsilon) else f"{self.epsilon:.0e}"
        kind = "largest" if self.by_size else "sparse-vector"
        return f"{kind}-{self.share:g}-epsilon-{epsilon}" + ("-moments" * self.keeps_moments)

    @property
    def words(self) -> str:
        """Of its row."""
        if self.share == 1:
            kind = "all of the update"
        else:
            kind = f"{'largest' if self.by_size else 'sparse vector,'} {100 * self.share:g} %"
        return kind + (", moments kept" if self.keeps_moments else "")


SETTINGS = (
    Setting(share=1.0, epsilon=math.inf, by_size=True),
    Setting(share=1.0, epsilon=math.inf, by_size=True, keeps_moments=True),
    Setting(share=0.4, epsilon=math.inf, by_size=True),
    Setting(share=0.1, epsilon=math.inf, by_size=True),
    *(Setting(share=0.1, epsilon=epsilon) for epsilon in EPSILONS),
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How all sites train between two rounds.

    Attributes:
        rounds: Rounds.
        steps: Steps of Adam of a site in a round.
        learning_rate: Of Adam.
        reach: Of the sparse vector technique: clipped to it, a number has moved as far as one step
            of Adam moves it.
    """

    rounds: int
    steps: int
    learning_rate: float = 1e-3
    reach: float = 1e-3


def cell(
    setting: Setting,
    base: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    training: Training,
    seed: int,
    out: Path,
) -> Scores:
    """The Dice of each held-out patient under one setting and seed, kept in a file."""
    file = out / "cells" / f"{setting.name}-seed-{seed}.json"
    asked = json.dumps(
        [
            repr(setting),
            asdict(training),
            base.digest,
            *(site.model_dump_json(exclude={"state"}) for site in sites),
        ]
    )
    digest = hashlib.sha256(asked.encode()).hexdigest()
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["digest"] != digest:
            raise ConfigError(
                f"{file}: expected the result of these settings and sites, found that of others; "
                "name another folder by --out."
            )
        rows = kept["rows"]
    else:
        console.print(f"{setting.words}, epsilon {shown(setting.epsilon)}, seed {seed}")
        study = base.model_copy(update={"seed": seed})
        rows = _federate(setting, study, sites, training=training, out=out)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"digest": digest, "rows": rows}).encode())
    scores: Scores = {region: {} for region in base.input.regions}
    for site, patient, region, dice in rows:
        scores[region][site, patient] = dice
    return scores


def _federate(
    setting: Setting,
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    training: Training,
    out: Path,
) -> list[tuple[str, str, Region, float]]:
    weights = load_file(run_folder(out, study.seed) / "checkpoints" / "initial.safetensors")
    states = [simulated_state(site, run_folder=out / "states") for site in sites]
    moments: dict[str, dict[str, object]] = {}
    mechanism = SparseVector(
        numbers=sum(value.numel() for value in weights.values()),
        share=setting.share,
        reach=training.reach,
        threshold=training.reach / 2,
        epsilon=setting.epsilon / training.rounds,
    )
    with one_thread():
        for number in range(1, training.rounds + 1):
            total = np.zeros(mechanism.numbers)
            for position, state in enumerate(states):
                trained = _train(
                    state,
                    study,
                    weights,
                    training=training,
                    round_number=number,
                    moments=moments if setting.keeps_moments else {},
                )
                change = _flat(trained) - _flat(weights)
                generator = np.random.default_rng([study.seed, number, position])
                total += (
                    largest(change, share=setting.share)
                    if setting.by_size
                    else mechanism.apply(change, generator=generator)
                )
            weights = _moved(weights, total / len(states))
            if number % 5 == 0 or number == training.rounds:
                console.print(f"  round {number}/{training.rounds}", highlight=False)
        task = EvaluateTask(study=study, round=training.rounds, distances=False)
        return [
            (state.site.name, score.patient, score.region, score.dice)
            for state in states
            for score in evaluate(state, task, weights).scores
        ]


def _train(
    state: SiteState,
    study: StudyConfig,
    weights: Weights,
    *,
    training: Training,
    round_number: int,
    moments: dict[str, dict[str, object]],
) -> Weights:
    """A site's weights after its steps of a round, without clipping and without noise."""
    network = model_spec(study).build()
    load_trainable(network, weights)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    if state.site.name in moments:
        optimizer.load_state_dict(moments[state.site.name])
    store, _ = state.stores(study)
    name = hashlib.sha256(f"{study.seed} {round_number} {state.site.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name[:6], "big"))
    network.train()
    for _ in range(training.steps):
        losses = []
        for index in torch.randint(len(store), (BATCH_PATIENTS,), generator=generator).tolist():
            images, regions = draw_crops(
                store.prepared(index),
                crop_size=study.input.crop_size,
                count=study.input.crops_per_patient,
                generator=generator,
                absent=store.absent_channels(index),
            )
            losses.append(supervised_loss(heads_of(network, network(images)), regions))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    moments[state.site.name] = optimizer.state_dict()
    return {name: value.clone() for name, value in trainable_state(network).items()}


def _flat(weights: Weights) -> NDArray[np.float64]:
    return np.concatenate([weights[name].double().numpy().ravel() for name in sorted(weights)])


def _moved(weights: Weights, change: NDArray[np.float64]) -> Weights:
    moved, begin = {}, 0
    for name in sorted(weights):
        size = weights[name].numel()
        part = torch.from_numpy(change[begin : begin + size]).reshape(weights[name].shape)
        moved[name] = (weights[name].double() + part).float()
        begin += size
    return moved


def run_folder(out: Path, seed: int) -> Path:
    """Of medfl's own federation, whose first model all cells of a seed start from."""
    return out / f"medfl-seed-{seed}"


def shown(epsilon: float) -> str:
    """An epsilon as a table says it."""
    if math.isinf(epsilon):
        return "none"
    return f"{epsilon:g}" if epsilon < 1e4 else f"{epsilon:.0e}"
