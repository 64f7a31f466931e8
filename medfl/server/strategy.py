"""Admit, then aggregate: what the server does with the answers of a round.

`admit` is a plain function that accepts or rejects one update with a code. Aggregation itself is
Flower's own; it is only ever given admitted updates under declared public weights, since it would
average NaN, broadcast shapes and believe any weight that a reply states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, Krum
from numpy.typing import NDArray

from medfl.config import StudyConfig
from medfl.errors import QuorumError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import (
    Declaration,
    SiteUpdate,
    TrainTask,
    Weights,
    expect,
    to_arrays,
    weights_digest,
)

# Of the norm of Gaussian noise above the square root of its dimension: exceeded with probability
# exp(-50) (Laurent and Massart 2000, lemma 1).
_NOISE_REACH = 10.0
# The largest step of Adam over its learning rate: (1 - 0.9) / sqrt(1 - 0.999) (Kingma and Ba, arXiv
# 1412.6980, section 2.1).
_ADAM_REACH = 3.17
_ROUNDING = 1.01  # of float32, over all steps

# Aggregation asks for no sender.
_NO_NODE = 0


def admit(
    update: SiteUpdate,
    weights: Weights,
    *,
    task: TrainTask,
    declaration: Declaration,
    start: Weights,
) -> None:
    """Screen one site update.

    Args:
        update: What the site says of it.
        weights: The site's noisy weights.
        task: What the site was asked.
        declaration: What the site declared before round 1.
        start: The parameters of the global model that was sent which the site trains.

    Raises:
        MessageError: With a code of its own for each rule that is broken.
    """
    expect(update.site == declaration.site, "update-site", "the site that was asked")
    asked = (task.run, task.round, task.message_id)
    answered = (update.run, update.round, update.message_id)
    expect(answered == asked, "update-replayed", "an answer to this round")
    expect(update.mechanism == task.mechanism, "update-mechanism", "the mechanism that was agreed")
    expect(update.steps == task.mechanism.local_steps, "update-steps", "all steps of the round")
    expect(set(weights) == set(start), "update-keys", "exactly the trained parameters")
    for name, value in weights.items():
        expect(value.shape == start[name].shape, "update-shape", "the model's shapes")
        expect(bool(torch.isfinite(value).all()), "update-not-finite", "finite weights")
    expect(update.weights_digest == weights_digest(weights), "update-digest", "the signed weights")
    distance = _norm({name: weights[name] - start[name] for name in start})
    largest = largest_update_norm(task.study, task.mechanism, round_number=task.round, start=start)
    expect(distance <= largest, "update-norm", f"a norm <= {largest:g}")


def largest_update_norm(
    study: StudyConfig, mechanism: Mechanism, *, round_number: int, start: Weights
) -> float:
    """The largest change of weights that an honest site can send in a round.

    With SGD, T steps of the round's learning rate h move weights by at most T h C / q through
    clipped gradients (n of them, over the divisor q n), and through independent noise by
    h sigma C / (q n) times the norm of a Gaussian of d T dimensions. Adam and AdamW move each
    weight by at most `_ADAM_REACH` h a step. A weight decay l takes h l w = h l w0 + h l (w - w0)
    off in a step, where w0 are the weights that were sent: the first part adds h l |w0|, the second
    pulls back, as a proximal term does. Only where h (mu + l) > 2 do these overshoot, when each
    step multiplies the way so far by h (mu + l) - 1.

    Args:
        study: Its local optimizer, learning rates, weight decay and proximal term.
        mechanism: That of the site in this round.
        round_number: From 1.
        start: The trained parameters of the global model that was sent.

    Returns:
        A bound that fails with probability exp(-50), whatever the data.
    """
    training, steps = study.training, mechanism.local_steps
    rate, parameters = study.learning_rate(round_number), sum(w.numel() for w in start.values())
    if training.optimizer in ("adam", "adamw"):
        moved = steps * rate * _ADAM_REACH * math.sqrt(parameters)
    else:
        signal = steps * mechanism.clip_norm / mechanism.sampling_prob
        reach = math.sqrt(parameters * steps) + _NOISE_REACH
        moved = rate * (signal + mechanism.noise_std / mechanism.divisor * reach)
    moved += steps * rate * training.weight_decay * _norm(start)
    growth = max(1.0, abs(1 - rate * (training.proximal_mu + training.weight_decay)))
    return _ROUNDING * moved * growth ** (steps - 1)


class Aggregator:
    """A Flower strategy's arithmetic, with a state that can be stored and restored.

    Args:
        study: Names the strategy and its constants.
    """

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        self._strategy = _strategy(study)

    def aggregate(
        self,
        updates: Mapping[str, ArrayRecord],
        *,
        start: Weights,
        site_weights: Mapping[str, float],
        round_number: int,
    ) -> Weights:
        """The next global model.

        Args:
            updates: Admitted weights by site, read array by array as they are summed.
            start: The global model that was sent.
            site_weights: Declared public weight by site.
            round_number: 1 for the first round.

        Returns:
            The new weights.

        Raises:
            QuorumError: If there is no update.
        """
        if not updates:
            raise QuorumError("Expected at least one admitted update, found none.")
        self._begin(start, rate=self._study.server_learning_rate(round_number), sites=len(updates))
        is_robust = self._study.aggregation.is_robust
        # Sorted, so that floating-point sums do not depend on who answered first.
        replies = [
            self._reply(
                _changes(updates[site], start=start) if is_robust else updates[site],
                weight=site_weights[site],
            )
            for site in sorted(updates)
        ]
        arrays, _ = self._strategy.aggregate_train(round_number, replies)
        if arrays is None:
            raise QuorumError("Expected an aggregated model, found none.")
        # Some strategies compute in float64; the model is float32.
        found = {
            name: torch.from_numpy(np.asarray(array.numpy(), dtype=np.float32).copy())
            for name, array in arrays.items()
        }
        return {name: start[name] + found[name] for name in found} if is_robust else found

    def state(self) -> dict[str, torch.Tensor]:
        """Moments of the server optimizer, for a checkpoint."""
        tensors: dict[str, torch.Tensor] = {}
        if isinstance(self._strategy, FedAdam):
            for prefix, moments in (("m", self._strategy.m_t), ("v", self._strategy.v_t)):
                for name, value in (moments or {}).items():
                    tensors[f"{prefix}.{name}"] = torch.from_numpy(np.asarray(value))
        if isinstance(self._strategy, FedAvgM):
            for index, value in enumerate(self._strategy.momentum_vector or []):
                tensors[f"momentum.{index}"] = torch.from_numpy(np.asarray(value))
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        if isinstance(self._strategy, FedAdam) and tensors:
            self._strategy.m_t = _with_prefix(tensors, "m.")
            self._strategy.v_t = _with_prefix(tensors, "v.")
        if isinstance(self._strategy, FedAvgM) and tensors:
            self._strategy.momentum_vector = [
                tensors[f"momentum.{index}"].numpy() for index in range(len(tensors))
            ]

    def _reply(self, arrays: ArrayRecord, *, weight: float) -> Message:
        # The form that Flower aggregates, with the declared weight and no number from a reply.
        metrics = MetricRecord({self._strategy.weighted_by_key: weight})
        content = RecordDict({self._strategy.arrayrecord_key: arrays, "metrics": metrics})
        return Message(content, _NO_NODE, "train")

    def _begin(self, start: Weights, *, rate: float, sites: int) -> None:
        # What the strategies' own `configure_train` would note before it draws nodes, and what they
        # know one of only: the learning rate, and the share of the updates that is cut off.
        if isinstance(self._strategy, FedTrimmedAvg):
            # Flower cuts int(beta n) at each end and takes no half: a quarter more is cut off again
            # and leaves beta below a half even with 2 f + 1 updates.
            self._strategy.beta = (self._study.aggregation.faulty_sites + 0.25) / sites
        if isinstance(self._strategy, FedAdam):
            self._strategy.eta = rate
            self._strategy.current_arrays = {name: start[name].numpy() for name in sorted(start)}
        if isinstance(self._strategy, FedAvgM):
            self._strategy.server_learning_rate = rate
            # What its constructor derives from the two; without it the rate would be ignored.
            self._strategy.server_opt = self._strategy.server_momentum != 0 or rate != 1
            self._strategy.current_arrays = to_arrays(start)


def exponential_average(
    average: Weights, weights: Weights, *, decay: float, round_number: int
) -> Weights:
    """Exponential moving average of the global models, which costs no privacy.

    De et al., arXiv 2204.13650, section 3.2; the decay warms up as min(decay, (1+t)/(10+t)).
    """
    rate = min(decay, (1 + round_number) / (10 + round_number))
    return {name: rate * average[name] + (1 - rate) * weights[name] for name in weights}


def _strategy(study: StudyConfig) -> FedAvg:
    settings = study.aggregation
    if settings.strategy == "fedadam":
        return FedAdam(
            eta=settings.server_learning_rate,
            eta_l=study.training.learning_rate,
            beta_1=settings.momentum,
            beta_2=settings.second_momentum,
            tau=settings.adaptivity,
        )
    if settings.strategy == "fedavgm":
        return FedAvgM(
            server_learning_rate=settings.server_learning_rate, server_momentum=settings.momentum
        )
    if settings.strategy == "median":
        return FedMedian()
    if settings.strategy == "trimmed-mean":
        return FedTrimmedAvg()
    if settings.strategy == "krum":
        return Krum(num_malicious_nodes=settings.faulty_sites)
    # FedProx aggregates as FedAvg does; its term is applied at the sites.
    return FedAvg()


def _changes(weights: ArrayRecord, *, start: Weights) -> ArrayRecord:
    """A record of its own, from which Flower's median takes array after array away."""
    changes = ArrayRecord()
    for name, array in weights.items():
        changes[name] = _Change(array, start=start[name].numpy())
    return changes


class _Change(Array):
    """Weights less those that were sent, computed when they are asked for.

    Krum's distances are differences of squared norms, in float32: of whole models, which are all
    but equal, nothing would be left of them but rounding.
    """

    def __init__(self, weights: Array, *, start: NDArray[Any]) -> None:
        super().__init__(dtype="float32", shape=start.shape, stype="numpy.ndarray", data=b"")
        self._weights = weights
        self._start = start

    def numpy(self) -> NDArray[Any]:
        return np.asarray(self._weights.numpy() - self._start)


def _norm(weights: Weights) -> float:
    return float(torch.stack([value.norm() for value in weights.values()]).norm())


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): value.numpy()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
