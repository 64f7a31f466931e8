"""The server's side of a secure round: it carries the messages of five phases and learns a sum.

A site that is silent, refuses or breaks a rule has fallen out, and the round goes on without it as
long as a threshold of sites is left. A round that ends without a sum stays charged at the sites
that were asked to add to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Message, RecordDict

from medfl.config import StudyConfig
from medfl.errors import MedflError, MessageError, SecureSumError
from medfl.protocol.messages import (
    SiteUpdate,
    TrainTask,
    Weights,
    expect,
    read_body,
    to_record,
)
from medfl.protocol.secure_round import (
    ADD,
    ADVERTISE,
    CONFIRM,
    SHARE,
    UNMASK,
    AddTask,
    AdvertTask,
    ConfirmTask,
    Members,
    ShareTask,
    UnmaskTask,
    answer_of,
    masked_of,
)
from medfl.runs.records import Outcome
from medfl.secure_sum.collector import Collector
from medfl.secure_sum.messages import (
    Advert,
    Confirmation,
    MaskedInput,
    SealedShares,
    Unmasking,
)
from medfl.secure_sum.terms import RoundTerms
from medfl.server.agreement import content_of
from medfl.server.ask import discard

PHASES: Mapping[str, str] = {
    ADVERTISE: "keys",
    SHARE: "shares of secrets",
    ADD: "training",
    CONFIRM: "who is in the sum",
    UNMASK: "unmasking the sum",
}
"""What a phase is called where people look."""


class Authored(Protocol):
    """A message of a secure sum, which names its author."""

    @property
    def site(self) -> str:
        """Who signed it."""


Answer = TypeVar("Answer", bound=Authored)


class Ask(Protocol):
    """Asks sites and hands over their answers as they come."""

    def __call__(
        self, questions: Mapping[str, RecordDict], *, kind: str, group: str, phase: str
    ) -> Iterator[tuple[str, Message]]:
        """Site and answer."""


class Check(Protocol):
    """Screens what a site says of its ledger; raises `MedflError`."""

    def __call__(self, update: SiteUpdate, *, site: str) -> None:
        """Of one site."""


@dataclass(frozen=True, kw_only=True)
class SecureTotal:
    """How a round ended.

    Attributes:
        total: Multiples of the grid, int64, shape (d,); empty without a sum.
        survivors: Who is in the sum, in ascending order.
        updates: What sites said that the round has cost them, of all who answered it.
        codes: Why a site is not in the sum, by site.
        refused: Sites that refused a phase, as opposed to those whose answer was not taken.
        charged: Sites that were asked to add to the sum, so that their ledgers may be charged.
        code: Why there is no sum; empty if there is one.
    """

    total: npt.NDArray[np.int64]
    survivors: tuple[str, ...]
    updates: Mapping[str, SiteUpdate]
    codes: Mapping[str, str]
    refused: frozenset[str]
    charged: frozenset[str]
    code: str

    def outcome(self, site: str) -> tuple[Outcome, str]:
        """What the round was for a site, and why it is not in the sum; empty text if it is."""
        if site in self.survivors:
            return "admitted", ""
        code = self.codes.get(site, "") or self.code
        if code == "silent":
            return "silent", code
        return ("refused" if site in self.refused else "rejected"), code

    def moved(
        self,
        start: Weights,
        *,
        study: StudyConfig,
        tasks: Mapping[str, TrainTask],
        members: Members,
    ) -> Weights:
        """The weights after the round's step: what one site with all patients would send.

        Args:
            start: The trained parameters of the global model.
            study: Its learning rate.
            tasks: What the sites were asked for; grid and q are common to them.
            members: Says how many patients the survivors declare, N.

        Returns:
            start - h g total / (q N), with the round's learning rate h and the grid g; nothing
            without a sum.
        """
        if self.code:
            return {}
        task = tasks[self.survivors[0]]
        mechanism = task.mechanism
        patients = sum(members[site].declared_patients for site in self.survivors)
        divisor = mechanism.sampling_prob * patients
        scale = study.learning_rate(task.round) * mechanism.grid / divisor
        new: Weights = {}
        begin = 0
        for name in sorted(start):
            end = begin + start[name].numel()
            part = torch.from_numpy(self.total[begin:end]).reshape(start[name].shape)
            new[name] = (start[name].double() - scale * part.double()).to(start[name].dtype)
            begin = end
        return new


class SecureRound:
    """One round.

    Args:
        terms: Of the round.
        tasks: What each site of the roster that is there is asked for, by site.
        ask: Reaches the sites.
        check: Screens what a site says of its ledger; raises `MedflError`.
    """

    def __init__(
        self,
        terms: RoundTerms,
        *,
        tasks: Mapping[str, TrainTask],
        ask: Ask,
        check: Check,
    ) -> None:
        self._collector = Collector(terms)
        self._tasks = tasks
        self._ask = ask
        self._check = check
        self._run, self._number = terms.run, terms.round
        self._codes: dict[str, str] = {}
        self._refused: set[str] = set()
        self._updates: dict[str, SiteUpdate] = {}
        self._charged: frozenset[str] = frozenset()

    def collect(self, weights: Weights) -> SecureTotal:
        """Lead the sites through all phases.

        Args:
            weights: The global model.
        """
        nothing = np.zeros(0, dtype=np.int64)
        try:
            total, survivors = self._phases(weights)
        except SecureSumError as error:
            return self._ended(nothing, (), code=error.code)
        return self._ended(total, survivors, code="")

    def _phases(self, weights: Weights) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        collector, run, number = self._collector, self._run, self._number
        first = next(iter(self._tasks.values()))
        advertise = AdvertTask(
            study=first.study, run=run, round=number, model_digest=collector.terms.model_digest
        )
        self._each(
            dict.fromkeys(self._tasks, to_record(advertise)),
            kind=ADVERTISE,
            read=lambda record, _: answer_of(record, Advert.from_dict),
            take=collector.take_advert,
        )
        adverts = collector.adverts()
        share = ShareTask(
            run=run, round=number, adverts=tuple(advert.to_dict() for advert in adverts)
        )
        self._each(
            dict.fromkeys((advert.site for advert in adverts), to_record(share)),
            kind=SHARE,
            read=lambda record, _: answer_of(record, SealedShares.from_dict),
            take=collector.take_shares,
        )
        self._add(weights, asked=[advert.site for advert in adverts])
        survivors = collector.survivors()
        confirm = ConfirmTask(run=run, round=number, survivors=survivors)
        self._each(
            dict.fromkeys(survivors, to_record(confirm)),
            kind=CONFIRM,
            read=lambda record, _: answer_of(record, Confirmation.from_dict),
            take=collector.take_confirmation,
        )
        confirmations = collector.confirmations()
        unmask = UnmaskTask(
            run=run, round=number, confirmations=tuple(each.to_dict() for each in confirmations)
        )
        self._each(
            dict.fromkeys((each.site for each in confirmations), to_record(unmask)),
            kind=UNMASK,
            read=lambda record, _: answer_of(record, Unmasking.from_dict),
            take=collector.take_unmasking,
        )
        return collector.total()

    def _add(self, weights: Weights, *, asked: list[str]) -> None:
        questions: dict[str, RecordDict] = {}
        model: dict[str, ArrayRecord] = {}
        for site in asked:
            try:
                deliveries = self._collector.deliveries_for(site)
            except SecureSumError as error:
                if error.code == "secure-sum-quorum":
                    raise
                continue  # it fell out before, with a code of its own
            task = AddTask(
                **dict(self._tasks[site]),
                deliveries=tuple(delivery.to_dict() for delivery in deliveries),
            )
            if not model:
                record = to_record(task, weights=weights)
                model = {
                    name: part for name, part in record.items() if isinstance(part, ArrayRecord)
                }
            questions[site] = RecordDict({**to_record(task), **model})
        self._charged = frozenset(questions)
        self._each(questions, kind=ADD, read=self._read_masked, take=self._collector.take_masked)

    def _read_masked(self, record: RecordDict, site: str) -> MaskedInput:
        """A masked vector; what the site spent counts even if the vector is refused."""
        task = self._tasks[site]
        try:
            update = read_body(record, SiteUpdate)
        except MessageError:
            # With a code of its own: a site that refuses a message has not been charged.
            raise MessageError("Expected an update, found none.", code="update-body") from None
        expect(update.site == site, "update-site", "the site that was asked")
        self._check(update, site=site)
        asked = (task.run, task.round, task.message_id)
        answered = (update.run, update.round, update.message_id)
        # An answer to something else does not tell what this round has cost.
        expect(answered == asked, "update-replayed", "an answer to this round")
        self._updates[site] = update
        expect(update.mechanism == task.mechanism, "update-mechanism", "the agreed mechanism")
        expect(update.steps == task.mechanism.local_steps, "update-steps", "the one step")
        masked = masked_of(record)
        digest = hashlib.sha256(masked.vector).hexdigest()
        expect(update.weights_digest == digest, "update-digest", "the signed vector")
        return masked

    def _each(
        self,
        questions: Mapping[str, RecordDict],
        *,
        kind: str,
        read: Callable[[RecordDict, str], Answer],
        take: Callable[[Answer], None],
    ) -> None:
        """Ask, and take each answer; a site that gives none, or a bad one, gets a code."""
        unheard = set(questions)
        for site, reply in self._ask(
            questions, kind=kind, group=str(self._number), phase=PHASES[kind]
        ):
            unheard.discard(site)
            try:
                content = content_of(reply)
            except MedflError as refusal:
                self._codes.setdefault(site, refusal.code)
                self._refused.add(site)
                continue
            try:
                answer = read(content, site)
                expect(answer.site == site, "secure-sum-author", "the site that was asked")
                take(answer)
            except MedflError as error:
                self._codes.setdefault(site, error.code)
            discard(reply)
        for site in unheard:
            self._codes.setdefault(site, "silent")

    def _ended(
        self, total: npt.NDArray[np.int64], survivors: tuple[str, ...], *, code: str
    ) -> SecureTotal:
        return SecureTotal(
            total=total,
            survivors=survivors,
            updates=self._updates,
            codes={site: said for site, said in self._codes.items() if site not in survivors},
            refused=frozenset(self._refused),
            charged=self._charged,
            code=code,
        )
