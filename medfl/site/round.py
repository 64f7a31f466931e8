"""What a site does with a proposal and with a round, without Flower: declare and train.

The order of `train_update` is the guarantee: the site's policy first, then what was paid for
already, then the charge, then the first step that touches data. Before the charge every patient's
files are looked at, no matter who will be drawn, and the largest one goes through the network: a
damaged file or a lack of memory costs nothing, and whether the site answers says nothing about the
draw.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from medfl.config import StudyConfig
from medfl.errors import FederationError, MessageError, PolicyRefused
from medfl.privacy.engine import (
    RoundDiagnostics,
    StepObserver,
    local_optimizer,
    train_round,
)
from medfl.privacy.ledger.ledger import Ledger, Permit
from medfl.privacy.noise import SecureNormal
from medfl.privacy.patients import Patients
from medfl.privacy.policy import check_proposal
from medfl.protocol.messages import (
    SiteUpdate,
    TrainTask,
    Weights,
    weights_digest,
)
from medfl.segmentation.networks import (
    load_trainable,
    only_trained,
    trainable_state,
    trained_names,
)
from medfl.site.agreement import agreed
from medfl.site.first_model import keep_start
from medfl.site.open_runs import OpenRuns
from medfl.site.state import SiteState

logger = logging.getLogger(__name__)

# Far above any model that trains; beyond it a step's change would be lost in float32's rounding.
MAX_WEIGHTS_NORM = 1e6

# Of a simulation: the round that a resumed run asks for again, the one before, and what is small.
_KEPT_OF_OPEN_DATA, _KEPT_BYTES = 2, 2**28
_REHEARSAL = -1  # the step of a gradient that nobody gets


def train_update(
    site_state: SiteState,
    task: TrainTask,
    weights: Weights,
    *,
    expires: float,
    on_step: StepObserver,
) -> tuple[SiteUpdate, Weights]:
    """One round at one site: charge, compute, store, release.

    Args:
        site_state: The site.
        task: The server's request.
        weights: The global model.
        expires: When the server stops waiting, in seconds since 1970 by its clock.
        on_step: Progress.

    Returns:
        The update and its noisy weights; the stored ones where this request was answered before.

    Raises:
        PolicyRefused: If the task is weaker than the site's policy, or its server does not wait
            as long as the site lets an update rest; nothing was charged.
        MessageError: If the weights are beyond any model, or nobody waits for the update any more;
            nothing was charged.
        DataError: If a patient's files cannot be used; nothing was charged.
        BudgetExceeded: If the charge does not fit; nothing was charged.
        MedflError: If the round cannot be computed; what was charged stays charged.
    """
    arrived = time.monotonic()
    if task.mechanism.trust != "local":
        raise PolicyRefused(
            "Expected a round of trust 'local', where the site's noise protects its own update, "
            f"found {task.mechanism.trust!r}.",
            code="policy-trust",
        )
    check_task(site_state, task, weights)
    request = _digest(task, weights)
    stored = site_state.outbox.get(task.message_id, request=request)
    if stored is not None:
        with site_state.open_ledger() as ledger:
            # Once more, in case a crash came between the outbox and the ledger.
            ledger.mark_released(task.message_id, stored.digest)
        return SiteUpdate.model_validate_json(stored.body), stored.weights
    with paid_round(site_state, task, weights, expires=expires, arrived=arrived) as paid:
        _train(site_state, task, paid, on_step=on_step)
        released = trainable_state(paid.network)
        update = paid.statement(site_state, task, digest=weights_digest(released))
        stored_digest = site_state.outbox.put(
            task.message_id, request=request, body=update.model_dump_json(), weights=released
        )
        paid.ledger.mark_released(task.message_id, stored_digest)
    if site_state.site.purpose == "open-data":
        site_state.outbox.keep_newest(_KEPT_OF_OPEN_DATA, max_bytes=_KEPT_BYTES)
    rest(arrived, seconds=site_state.site.privacy.answer_seconds)
    return update, released


@dataclass(frozen=True, kw_only=True)
class PaidRound:
    """A round that was charged and may touch patients now.

    Attributes:
        ledger: Open.
        network: With the global model's weights; only what the study trains asks for gradients.
        patients: Those who can be drawn.
        permit: The charge.
    """

    ledger: Ledger
    network: nn.Module
    patients: Patients
    permit: Permit

    def statement(self, site_state: SiteState, task: TrainTask, *, digest: str) -> SiteUpdate:
        """What the round has cost, signed.

        Args:
            site_state: The site.
            task: The request.
            digest: Of what is released.
        """
        head = self.ledger.head()
        return SiteUpdate(
            site=site_state.site.name,
            run=task.run,
            round=task.round,
            run_steps=self.ledger.steps(run=task.run),
            weights_digest=digest,
            message_id=task.message_id,
            mechanism=task.mechanism,
            steps=task.mechanism.local_steps,
            ledger_sequence=head.sequence,
            ledger_hash=head.hash,
        ).signed(site_state.keys)


@contextmanager
def paid_round(
    site_state: SiteState, task: TrainTask, weights: Weights, *, expires: float, arrived: float
) -> Iterator[PaidRound]:
    """Look at everything that could make a round fail, then charge it.

    Args:
        site_state: The site.
        task: The server's request, which `check_task` let pass.
        weights: The global model.
        expires: When the server stops waiting, in seconds since 1970 by its clock.
        arrived: When the request came, by `time.monotonic`.

    Raises:
        MedflError: As `train_update` says.
    """
    network = site_state.network(task.study)
    load_trainable(network, weights)
    trained = trained_names(network, task.study.training.trainable)
    with site_state.open_ledger() as ledger, only_trained(network, trained):
        agreement = agreed(ledger, run=task.run, study=task.study)
        if agreement.mechanism.in_round(task.round) != task.mechanism:
            raise PolicyRefused(
                "Expected the mechanism that this site agreed to for this round of the run, found "
                "another.",
                code="policy-not-agreed",
            )
        patients = site_state.training_patients(
            task.study, network, round_number=task.round, members=agreement.members
        )
        torch.set_num_threads(site_state.site.threads)
        runs = OpenRuns(site_state.site)
        runs.require_room(task.run)
        _verify_patients(site_state, task.study, members=agreement.members)
        _rehearse(site_state, task.study, network, patients, members=agreement.members)
        _require_in_time(expires, arrived=arrived, seconds=site_state.site.privacy.answer_seconds)
        runs.require_open(task.run, study=task.study)
        permit = ledger.charge(
            study=task.study.id,
            run=task.run,
            round=task.round,
            message_id=task.message_id,
            mechanism=task.mechanism,
            # Once more, since files may have been exchanged after the agreement.
            patients=site_state.marks(members=agreement.members),
        )
        if task.round == 1 and site_state.site.purpose == "hospital":
            keep_start(site_state.site.state, weights, study=task.study, run=task.run)
        yield PaidRound(ledger=ledger, network=network, patients=patients, permit=permit)


def check_task(site_state: SiteState, task: TrainTask, weights: Weights) -> None:
    """Refuse what the site's policy refuses, and weights beyond any model; nothing is charged.

    Raises:
        PolicyRefused: If the task is weaker than the site's policy.
        MessageError: If the weights are beyond any model.
    """
    check_proposal(task.mechanism, rounds=task.study.training.rounds, site=site_state.site)
    require_round(task.round, study=task.study)
    require_bounded(weights)


def require_round(number: int, *, study: StudyConfig) -> None:
    """Refuse a round that the study does not have.

    Raises:
        PolicyRefused: If there are fewer.
    """
    if number > study.training.rounds:
        raise PolicyRefused(
            f"Expected a round <= {study.training.rounds}, found {number}.", code="policy-rounds"
        )


def require_bounded(weights: Weights) -> None:
    """Refuse weights beyond any model.

    Raises:
        MessageError: If their norm is above `MAX_WEIGHTS_NORM`.
    """
    norms = [value.double().norm() for value in weights.values()]
    norm = float(torch.stack(norms).norm()) if norms else 0.0
    # What is not finite is refused with the model's own code.
    if math.isfinite(norm) and norm > MAX_WEIGHTS_NORM:
        raise MessageError(
            f"Expected weights with a norm <= {MAX_WEIGHTS_NORM:g}, found {norm:g}.",
            code="message-norm",
        )


def _require_in_time(expires: float, *, arrived: float, seconds: float) -> None:
    """Refuse a round that is over: it would cost like any other, and be thrown away."""
    left = expires - time.time()
    if left <= 0:
        raise MessageError(
            f"Expected a task that the server waits for, found one that ended {-left:.0f} s ago.",
            code="message-late",
        )
    rest = arrived + seconds - time.monotonic()
    if rest >= left:
        raise PolicyRefused(
            f"Expected a server that waits for privacy.answer_seconds = {seconds:g}, found "
            f"{left:.0f} s left of the task with {rest:.0f} s to rest.",
            code="policy-answer-seconds",
        )


def rest(arrived: float, *, seconds: float) -> None:
    """Let a finished update rest until a whole multiple of `seconds` has passed.

    A step takes longer with more patients, so the time of an answer says how many were drawn.
    """
    if seconds:
        spent = time.monotonic() - arrived
        time.sleep(math.ceil(spent / seconds) * seconds - spent)


def _verify_patients(site_state: SiteState, study: StudyConfig, *, members: frozenset[str]) -> None:
    """Prepare everyone who could be drawn, so that the round meets no surprise once it is paid."""
    _, store = site_state.member_store(study, members=members)
    try:
        store.verify()
    except OSError as error:
        raise FederationError(
            "Expected room for prepared images in the state folder, found: "
            f"{error.strerror or type(error).__name__}. Free space on its disk, or let medfl's "
            "user write there.",
            code="cache",
        ) from None


def _rehearse(
    site_state: SiteState,
    study: StudyConfig,
    network: nn.Module,
    patients: Patients,
    *,
    members: frozenset[str],
) -> None:
    """Compute the largest patient's gradient once and throw it away.

    A patient who does not fit into memory is found here, where it costs nothing and does not depend
    on who is drawn.
    """
    names, store = site_state.member_store(study, members=members)
    if not names:
        return
    largest = store.largest()
    if (study.digest, names[largest]) in site_state.rehearsed:
        return
    network.train()
    try:
        with patients.randomness(largest, step=_REHEARSAL) as generator:
            patients.loss_of(largest, generator).backward()
    finally:
        network.zero_grad(set_to_none=True)
    site_state.rehearsed.add((study.digest, names[largest]))


def _train(
    site_state: SiteState, task: TrainTask, paid: PaidRound, *, on_step: StepObserver
) -> None:
    study = task.study
    diagnostics = train_round(
        paid.network,
        mechanism=task.mechanism,
        permit=paid.permit,
        patients=paid.patients,
        optimizer=local_optimizer(
            paid.network,
            kind=study.training.optimizer,
            learning_rate=study.learning_rate(task.round),
            weight_decay=study.training.weight_decay,
        ),
        source=noise_source(task, site_state.site.name),
        proximal_mu=study.training.proximal_mu,
        on_step=on_step,
    )
    tell(diagnostics, round_number=task.round)


def tell(diagnostics: RoundDiagnostics, *, round_number: int) -> None:
    """Let the site's own log know of patients that contributed nothing."""
    if diagnostics.discarded:
        logger.warning(
            "Round %d: %d patient gradients were not finite and contributed zero.",
            round_number,
            diagnostics.discarded,
        )
    for reason, count in sorted(Counter(diagnostics.failures).items()):
        logger.error(
            "Round %d: %d patient gradients could not be computed (%s) and contributed zero. "
            "`medfl check` looks for the reason.",
            round_number,
            count,
            reason,
        )


def noise_source(task: TrainTask, site: str) -> SecureNormal:
    """The randomness of a round's draws and noise."""
    if task.mechanism.noise_origin == "seeded":
        return SecureNormal.seeded(task.study.seed, task.study.id, site, task.round)
    return SecureNormal.from_operating_system()


def _digest(task: TrainTask, weights: Weights) -> str:
    text = task.model_dump_json() + weights_digest(weights)
    return hashlib.sha256(text.encode()).hexdigest()
