"""What a site does in a secure sum: five phases, each of which it answers once.

The order of the third phase is the guarantee, as in `medfl.site.round`: policy, agreement, the
patients' files, the charge, then the step. What leaves is hidden behind masks that only a threshold
of the run's sites can remove, and only from the sum of all who stayed.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from medfl.errors import MessageError
from medfl.privacy.engine import StepObserver, noisy_sum
from medfl.protocol.messages import SiteUpdate, Weights, weights_digest
from medfl.protocol.secure_round import (
    AddTask,
    AdvertTask,
    ConfirmTask,
    ShareTask,
    UnmaskTask,
    read_wire,
    round_terms,
)
from medfl.secure_sum.messages import (
    Advert,
    Confirmation,
    Delivery,
    MaskedInput,
    SealedShares,
    Unmasking,
)
from medfl.secure_sum.party import Party
from medfl.secure_sum.terms import RoundTerms
from medfl.segmentation.networks import trainable_state, trained_names
from medfl.site.agreement import agreed
from medfl.site.open_runs import OpenRuns
from medfl.site.round import check_task, noise_source, paid_round, require_round, rest, tell
from medfl.site.state import SiteState
from medfl.site.sum_state import SumState

logger = logging.getLogger(__name__)


def advertise(site_state: SiteState, task: AdvertTask) -> Advert:
    """Begin a round: fresh keys, under terms that the site derives from what it agreed to.

    Raises:
        PolicyRefused: If the site did not agree to the run or its study.
        PrivacyError: If the round was begun before (secure-sum-again).
        MedflError: If there can be no such round.
    """
    with site_state.open_ledger() as ledger:
        agreement = agreed(ledger, run=task.run, study=task.study)
    runs = OpenRuns(site_state.site)
    runs.require_room(task.run)
    require_round(task.round, study=task.study)
    network = site_state.network(task.study)
    trained = trained_names(network, task.study.training.trainable)
    sums = SumState(site_state.folder, run=task.run)
    terms = round_terms(
        task.study,
        run=task.run,
        round_number=task.round,
        members=sums.members(),
        mechanism=agreement.mechanism.in_round(task.round),
        model_digest=task.model_digest,
        length=sum(
            value.numel() for name, value in trainable_state(network).items() if name in trained
        ),
    )
    party = Party(terms, site=site_state.site.name, sign=site_state.keys.sign)
    advert = party.advertise()
    sums.begin(party)
    runs.require_open(task.run, study=task.study)
    return advert


def share(site_state: SiteState, task: ShareTask) -> SealedShares:
    """Deal shares of the round's secrets.

    Raises:
        PrivacyError: As `Party.share` says.
        MessageError: If an advert is malformed.
    """
    with _next_phase(site_state, task) as party:
        return party.share([read_wire(advert, Advert.from_dict) for advert in task.adverts])


def add(
    site_state: SiteState,
    task: AddTask,
    weights: Weights,
    *,
    expires: float,
    on_step: StepObserver,
) -> tuple[SiteUpdate, MaskedInput]:
    """Charge, compute one noisy sum, and hide it.

    Args:
        site_state: The site.
        task: The server's request.
        weights: The global model.
        expires: When the server stops waiting, in seconds since 1970 by its clock.
        on_step: Progress.

    Returns:
        What the round has cost, signed, and the masked sum.

    Raises:
        MessageError: If the model is not the one whose digest the round began with, or as
            `medfl.site.round.train_update` says; nothing was charged.
        PrivacyError: As `Party.mask` says; what was charged stays charged.
        MedflError: As `medfl.site.round.train_update` says.
    """
    arrived = time.monotonic()
    sums = SumState(site_state.folder, run=task.run)
    party = sums.party(task.round, sign=site_state.keys.sign)
    _require_same_model(party.terms, weights)
    deliveries = [read_wire(delivery, Delivery.from_dict) for delivery in task.deliveries]
    party.require_deliveries(deliveries)  # a round that cannot end well shall cost nothing
    check_task(site_state, task, weights)
    with paid_round(site_state, task, weights, expires=expires, arrived=arrived) as paid:
        totals, diagnostics = noisy_sum(
            paid.network,
            mechanism=task.mechanism,
            permit=paid.permit,
            patients=paid.patients,
            source=noise_source(task, site_state.site.name),
            on_step=on_step,
        )
        tell(diagnostics, round_number=task.round)
        masked = party.mask(deliveries, in_one(totals))
        sums.keep(party)
        if party.unheld:
            logger.warning(
                "Round %d: the shares of %s could not be opened, or are not those that it signed. "
                "The sum goes on without them.",
                task.round,
                ", ".join(party.unheld),
            )
        digest = hashlib.sha256(masked.vector).hexdigest()
        update = paid.statement(site_state, task, digest=digest)
        paid.ledger.mark_released(task.message_id, digest)
    rest(arrived, seconds=site_state.site.privacy.answer_seconds)
    return update, masked


def confirm(site_state: SiteState, task: ConfirmTask) -> Confirmation:
    """Sign the one set of sites whose sum may be unmasked.

    Raises:
        PrivacyError: As `Party.confirm` says.
    """
    with _next_phase(site_state, task) as party:
        return party.confirm(task.survivors)


def unmask(site_state: SiteState, task: UnmaskTask) -> Unmasking:
    """Reveal what removes the masks from the confirmed sum, and keep nothing more of the round.

    Raises:
        PrivacyError: As `Party.unmask` says.
        MessageError: If a confirmation is malformed.
    """
    with _next_phase(site_state, task) as party:
        unmasking = party.unmask(
            [read_wire(each, Confirmation.from_dict) for each in task.confirmations]
        )
        party.forget()
        return unmasking


@contextmanager
def _next_phase(
    site_state: SiteState, task: ShareTask | ConfirmTask | UnmaskTask
) -> Iterator[Party]:
    """This site in a round; what the phase makes of it is kept before its answer leaves."""
    sums = SumState(site_state.folder, run=task.run)
    party = sums.party(task.round, sign=site_state.keys.sign)
    yield party
    sums.keep(party)


def in_one(totals: dict[str, torch.Tensor]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """All parameters of a sum in one vector, by ascending names: int64, shape (d,)."""
    flat = [totals[name].reshape(-1) for name in sorted(totals)]
    return torch.cat(flat).numpy()


def _require_same_model(terms: RoundTerms, weights: Weights) -> None:
    if weights_digest(weights) != terms.model_digest:
        raise MessageError(
            "Expected the model whose digest this round began with, found another.",
            code="message-model",
        )
