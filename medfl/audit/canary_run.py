"""`audit_study`: canaries in a federation that really runs, against what the server sees of it.

Everything between a patient's loss and the aggregated model is the code that hospitals run: policy,
ledger, engine, noise, outbox, messages, admission. The attacker is the server, which knows
everything but the coins and the noise. In trust mode ``local`` it sees every update of every site;
in ``secure`` it sees the sum of each round, by what that makes of the global model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medfl.audit.bounds import (
    Float64Array,
    GaussianEstimate,
    Guesses,
    LowerBounds,
    gaussian_estimate,
    largest_showable,
    lower_bounds,
)
from medfl.audit.canaries import AuditedState, BoolArray, Canaries, draw_canaries, moved
from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.config.site import Trust
from medfl.errors import ConfigError
from medfl.phantom.hospitals import write_hospitals
from medfl.privacy.accounting.accountant import epsilon
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.accounting.tradeoff import distinguishability
from medfl.protocol.messages import TrainTask, Weights, read_body, read_weights
from medfl.protocol.secure_round import ADD, AddTask
from medfl.runs.records import Round
from medfl.server.agreement import content_of
from medfl.server.ledger import FederationLedger
from medfl.server.progress import Silent
from medfl.server.run import Run
from medfl.server.run_folder import RunFolder
from medfl.server.server_app import make_server_app
from medfl.site.client_app import ignore_steps
from medfl.study.in_process_grid import InProcessGrid, run_in_process
from medfl.study.pretraining import initial_weights
from medfl.study.simulation import (
    check_sites,
    client_app_of,
    nodes_of,
    prepare_folder,
)

CANARIES = 2000
GUESSED = 400
"""Of the small federation: enough to show an epsilon well above the 4 that it claims."""

CONFIDENCE = 0.95

_TRAIN = "train"  # Flower's name for a message that asks for an update

Advance = Callable[[int, int], None]
"""Told the rounds done and the rounds in total."""


@dataclass(frozen=True, kw_only=True)
class CanaryAudit:
    """What an audit shows beside what the federation promises.

    Attributes:
        claimed_epsilon: Of the site that promises least, recomputed from the federation ledger.
        claimed_mu: The smallest mu-GDP that the charges of that site amount to.
        delta: At which every epsilon here is read; the largest of the sites'.
        confidence: Of each bound by itself, and of the estimate's interval.
        guesses: The attacker's, over all sites.
        shown: Lower bounds that the guesses prove.
        largest_showable: The same had every guess been right: no audit of this size shows more.
        estimate: What the scores look like; an estimate and no bound.
    """

    claimed_epsilon: float
    claimed_mu: float
    delta: float
    confidence: float
    guesses: Guesses
    shown: LowerBounds
    largest_showable: LowerBounds
    estimate: GaussianEstimate

    @property
    def consistent(self) -> bool:
        """Whether no lower bound lies above what is claimed."""
        # mu against mu: `epsilon_of_mu` is that of a Gaussian curve, which the claim need not have.
        return self.shown.epsilon <= self.claimed_epsilon and self.shown.mu <= self.claimed_mu

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types; infinite ones stay floats."""
        return {
            "claimed_epsilon": self.claimed_epsilon,
            "claimed_mu": self.claimed_mu,
            "delta": self.delta,
            "confidence": self.confidence,
            **vars(self.guesses),
            "shown": self.shown.to_dict(),
            "largest_showable": self.largest_showable.to_dict(),
            "estimate": self.estimate.to_dict(),
            "consistent": self.consistent,
        }


def audit_study(
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    canaries: int,
    guessed: int,
    out: Path,
    generator: np.random.Generator,
    advance: Advance,
) -> CanaryAudit:
    """Run a study with canaries at every site, attack it, and say what that proves.

    Args:
        study: The study; an even number of rounds with plain gradient steps.
        sites: Sites with open data; each gets an equal share of the canaries.
        canaries: m, over all sites.
        guessed: r, the guesses, all of them for having taken part, see `guess`.
        out: The run folder; must be new or empty.
        generator: The auditor's randomness, which no site and no server may know.
        advance: Progress.

    Returns:
        The audit.

    Raises:
        ConfigError: If study, sites or numbers do not allow an audit.
        MedflError: If the run cannot go on.
    """
    check_sites(study, sites)
    _check(study, sites, canaries=canaries, guessed=guessed)
    start = initial_weights(
        study, threads=max(site.threads for site in sites), advance=lambda *_: None
    )
    by_site = {
        site.name: draw_canaries(start, count=canaries // len(sites), generator=generator)
        for site in sites
    }
    site_states = [
        AuditedState(site, canaries=by_site[site.name], folder=out / "sites" / site.name)
        for site in sites
    ]
    attack = _Attack(
        by_site, patients={each.site.name: each.site.declared_patients for each in site_states}
    )
    prepare_folder(out, study=study, resume=False)
    folder = RunFolder(out)
    run = Run(
        study=study,
        folder=folder,
        run=folder.run_id(),
        private=True,
        variant="federated",
        start=lambda: start,
        progress=_Rounds(total=study.training.rounds, advance=advance),
    )
    if study.privacy.trust == "local":
        run_in_process(make_server_app(run), _ListeningGrid(site_states, heard=attack.see))
    else:
        grid = _SumGrid(site_states)
        run_in_process(make_server_app(run), grid)
        state = folder.read_state(study=study)
        models = [*grid.models, state.weights if state is not None else {}]
        for task, (before, after) in zip(grid.tasks, pairwise(models), strict=True):
            attack.see_sum(task, before, after)
    ledger = FederationLedger(folder)
    return _conclude(
        scores=np.concatenate([attack.scores[site.name] for site in sites]),
        included=np.concatenate([by_site[site.name].included for site in sites]),
        guessed=guessed,
        charges=[ledger.charges(site.name) for site in sites],
        delta=max(site.privacy.delta for site in sites),
    )


def small_federation(
    folder: Path, *, trust: Trust = "local"
) -> tuple[StudyConfig, list[SiteConfig]]:
    """Two tiny synthetic hospitals, and a study that claims epsilon 4 at delta 1e-5.

    Args:
        folder: A new or empty folder for their files.
        trust: Of the study.

    Raises:
        DataError: If the folder holds files.
    """
    files = write_hospitals(
        folder,
        patients=(4, 4, 1, 1),
        shape=(24, 24, 16),
        spacing=(7.5, 7.5, 10.0),
        skull_stripped=True,
        seed=11,
        on_patient=lambda: None,
    )
    sites = [load_site(file).model_copy(update={"threads": 1}) for file in files[:2]]
    study = _STUDY | {"privacy": _STUDY["privacy"] | {"trust": trust}}
    return StudyConfig.model_validate_json(json.dumps(study)), sites


_STUDY: dict[str, Any] = {
    "id": "canary-audit",
    "input": {"modalities": ["t1c", "t2f"], "regions": ["WT"], "crop_size": [8, 8, 8]},
    "network": {
        "name": "SegResNet",
        "arguments": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    },
    "privacy": {"epsilon": 4.0, "sampling_prob": 0.5},
    "training": {"rounds": 8, "local_steps": 1, "optimizer": "sgd", "learning_rate": 0.1},
    "aggregation": {"strategy": "fedavg", "min_sites": 2},
    "evaluation": {"every": 8, "pictures": 0},
}


class _Attack:
    """The server's scores: how far each canary's weight moved its way, summed over rounds.

    Scores are in units of the clip norm, so that those of all sites can be compared.
    """

    def __init__(self, canaries: Mapping[str, Canaries], *, patients: Mapping[str, int]) -> None:
        self._canaries = canaries
        self._patients = patients
        self.scores: dict[str, Float64Array] = {
            site: np.zeros(len(of_site)) for site, of_site in canaries.items()
        }

    def see(self, site: str, task: TrainTask, start: Weights, weights: Weights) -> None:
        """Look at one update."""
        self._score(site, task, start, weights, patients=task.mechanism.declared_patients)

    def see_sum(self, task: TrainTask, before: Weights, after: Weights) -> None:
        """Look at what a round's sum made of the global model, and there at every canary."""
        for site in self._canaries:
            self._score(site, task, before, after, patients=sum(self._patients.values()))

    def _score(
        self, site: str, task: TrainTask, before: Weights, after: Weights, *, patients: int
    ) -> None:
        update = {name: after[name].double() - before[name].double() for name in before}
        way = moved(update, self._canaries[site], round_number=task.round)
        per_clip_norm = task.mechanism.sampling_prob * patients / task.mechanism.clip_norm
        self.scores[site] += way.numpy() * per_clip_norm / task.study.learning_rate(task.round)


class _SumGrid(InProcessGrid):
    """Keeps the global model that every round of a secure sum begins with."""

    def __init__(self, site_states: Sequence[AuditedState]) -> None:
        app = client_app_of(site_states, observer_of=lambda _: ignore_steps)
        super().__init__(app, node_configs=nodes_of(site_states))
        self.tasks: list[AddTask] = []
        self.models: list[Weights] = []

    def deliver(self, message: Any) -> Any:
        """Call one node's app."""
        if message.metadata.message_type == ADD:
            task = read_body(message.content, AddTask)
            if len(self.tasks) < task.round:
                self.tasks.append(task)
                self.models.append(read_weights(message.content))
        return super().deliver(message)


class _ListeningGrid(InProcessGrid):
    """Shows every update to the attacker as the server gets it."""

    def __init__(
        self,
        site_states: Sequence[AuditedState],
        *,
        heard: Callable[[str, TrainTask, Weights, Weights], None],
    ) -> None:
        nodes = nodes_of(site_states)
        app = client_app_of(site_states, observer_of=lambda _: ignore_steps)
        super().__init__(app, node_configs=nodes)
        names = [site_state.site.name for site_state in site_states]
        self._sites = dict(zip(nodes, names, strict=True))
        self._heard = heard

    def deliver(self, message: Any) -> Any:
        """Call one node's app."""
        reply = super().deliver(message)
        if message.metadata.message_type == _TRAIN and reply is not None:
            self._heard(
                self._sites[message.metadata.dst_node_id],
                read_body(message.content, TrainTask),
                read_weights(message.content),
                read_weights(content_of(reply)),
            )
        return reply


class _Rounds(Silent):
    """Counts rounds."""

    def __init__(self, *, total: int, advance: Advance) -> None:
        self._total = total
        self._advance = advance

    def round_finished(self, record: Round) -> None:
        """A round was aggregated."""
        self._advance(record.round, self._total)


def _conclude(
    *,
    scores: Float64Array,
    included: BoolArray,
    guessed: int,
    charges: Sequence[Sequence[Charge]],
    delta: float,
) -> CanaryAudit:
    guesses = guess(scores, included, guessed=guessed)
    return CanaryAudit(
        claimed_epsilon=max(epsilon(of_site, delta=delta) for of_site in charges),
        claimed_mu=max(distinguishability(of_site).mu for of_site in charges),
        delta=delta,
        confidence=CONFIDENCE,
        guesses=guesses,
        shown=lower_bounds(guesses, delta=delta, confidence=CONFIDENCE),
        largest_showable=largest_showable(
            canaries=guesses.canaries, guessed=guessed, delta=delta, confidence=CONFIDENCE
        ),
        estimate=gaussian_estimate(
            scores[included], scores[~included], delta=delta, confidence=CONFIDENCE
        ),
    )


def guess(scores: Float64Array, included: BoolArray, *, guessed: int) -> Guesses:
    """Guess that the highest scores took part, and abstain from all others.

    A canary that takes part but is seldom drawn looks like one that does not, so that guesses of
    absence would be wrong by the sampling alone, however broken the noise.

    Args:
        scores: Shape (m,).
        included: The coins, shape (m,).
        guessed: r, at least 1.
    """
    surest = np.argsort(scores, kind="stable")[-guessed:]
    return Guesses(canaries=len(scores), guessed=guessed, correct=int(included[surest].sum()))


def _check(study: StudyConfig, sites: Sequence[SiteConfig], *, canaries: int, guessed: int) -> None:
    private = [site.name for site in sites if site.purpose != "open-data"]
    if private:
        raise ConfigError(
            f"Expected sites with purpose 'open-data' for an audit, which charges a ledger and "
            f"spoils a model, found the hospitals {private}."
        )
    training = study.training
    if training.rounds % 2 or training.optimizer != "sgd" or training.weight_decay:
        raise ConfigError(
            "Expected an even number of rounds with training.optimizer = 'sgd' and no weight_decay "
            f"for an audit, found {training.rounds} with {training.optimizer!r} and "
            f"{training.weight_decay:g}."
        )
    if not 0 < guessed <= canaries or canaries % len(sites):
        raise ConfigError(
            f"Expected at least one guess, at most one a canary, and as many canaries at each of "
            f"the {len(sites)} sites, found {guessed} and {canaries}."
        )
