"""A secure sum on the wire: the questions of its phases, and the terms that follow from a study.

Site and server derive a round's terms by the same function from what each of them knows itself, so
that no message has to carry, and nobody has to believe, a modulus, a scale or a threshold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field

from medfl.config import StudyConfig
from medfl.config.site import Count, Name
from medfl.errors import MedflError, MessageError
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise_shares import largest_total
from medfl.protocol.messages import (
    MAX_BODY_BYTES,
    MAX_WEIGHT_BYTES,
    Body,
    Digest,
    Identifier,
    Proposal,
    SiteUpdate,
    TrainTask,
    to_record,
)
from medfl.secure_sum.messages import MaskedInput
from medfl.secure_sum.terms import MODULUS_BITS, Roster, RoundTerms, minimum_threshold

ROSTER = "query.roster"
ADVERTISE = "query.advertise"
SHARE = "query.share"
ADD = "train.add"
CONFIRM = "query.confirm"
UNMASK = "query.unmask"
"""Flower's types of the messages of each phase."""

_ANSWER = "answer"
_MASKED = "masked"
_LONGEST_HEADER = 128  # of a vector in numpy's format

Wire = dict[str, Any]
"""A message of `medfl.secure_sum` as JSON types, which read it strictly themselves."""

Read = TypeVar("Read")


class Member(Body):
    """A site of a secure sum.

    Attributes:
        event_key: Under which it signs.
        declared_patients: Public number of its training patients.
    """

    event_key: Digest
    declared_patients: Count


Members = dict[Name, Member]


class RosterTask(Proposal):
    """Server to site, once before round 1: with whom the site's updates will be added up.

    It repeats the proposal, so that no site agrees to what it was not asked before.

    Attributes:
        members: Every site of the run, the one that is asked among them.
        noise_multiplier: Of the sum: the largest that one of them needs.
    """

    members: Annotated[Members, Field(min_length=2, max_length=10_000)]
    noise_multiplier: Annotated[float, Field(ge=0, le=1e6)]


class AdvertTask(Body):
    """Server to site: make the keys of a round.

    Attributes:
        model_digest: Of the global model that the round will begin with.
    """

    study: StudyConfig
    run: Identifier
    round: Count
    model_digest: Digest


class ShareTask(Body):
    """Server to site: deal shares of your secrets to those who advertised."""

    run: Identifier
    round: Count
    adverts: tuple[Wire, ...]


class AddTask(TrainTask):
    """Server to site: one round's work, to be hidden behind the masks that you share.

    Attributes:
        deliveries: What every dealer has dealt to this site.
    """

    deliveries: tuple[Wire, ...]


class ConfirmTask(Body):
    """Server to site: whose vectors are in the sum."""

    run: Identifier
    round: Count
    survivors: tuple[Name, ...]


class UnmaskTask(Body):
    """Server to site: that is what all have confirmed, now reveal what unmasks it."""

    run: Identifier
    round: Count
    confirmations: tuple[Wire, ...]


def sum_threshold(study: StudyConfig, *, sites: int) -> int:
    """How many sites have to stay to the end of a secure sum; see `RoundTerms.threshold`.

    Args:
        study: Its `min_sites` and `colluding_sites`.
        sites: K, all on the roster.

    Returns:
        t = max(min_sites, floor((K + c) / 2) + 1).

    Raises:
        ValueError: If so many sites cannot form such a sum.
    """
    least = minimum_threshold(sites=sites, colluding_sites=study.privacy.colluding_sites)
    threshold = max(least, study.aggregation.min_sites)
    if threshold > sites:
        raise ValueError(f"Expected {threshold} sites or more in a secure sum, found {sites}.")
    return threshold


def round_terms(
    study: StudyConfig,
    *,
    run: str,
    round_number: int,
    members: Mapping[str, Member],
    mechanism: Mechanism,
    model_digest: str,
    length: int,
) -> RoundTerms:
    """What all sites of a round have to agree on.

    Args:
        study: Its threshold and colluding sites.
        run: Identifier of the run.
        round_number: From 1.
        members: Every site of the run.
        mechanism: Of the round, at any of them: all that counts here is common to them.
        model_digest: Of the global model.
        length: Number of trained parameters.

    Raises:
        MessageError: If so many sites cannot form a sum, or the integers would fit no modulus.
    """
    bound = largest_total(
        mechanism,
        patients=sum(each.declared_patients for each in members.values()),
        sites=len(members),
    )
    fitting = [bits for bits in MODULUS_BITS if 2 * bound < 2 ** (bits - 1)]
    try:
        return RoundTerms(
            run=run,
            round=round_number,
            roster=Roster.of({name: each.event_key for name, each in members.items()}),
            model_digest=model_digest,
            length=length,
            modulus_bits=fitting[0],
            bound=bound,
            scale=_scale(mechanism),
            threshold=sum_threshold(study, sites=len(members)),
            colluding_sites=study.privacy.colluding_sites,
        )
    except (IndexError, ValueError) as error:
        raise MessageError(
            f"Expected sites and a mechanism that a secure sum can hold, found: {error}",
            code="secure-sum-terms",
        ) from None


def _scale(mechanism: Mechanism) -> str:
    """Everything of a mechanism that sites whose integers are added have in common."""
    values = mechanism.to_dict()
    del values["declared_patients"]
    return json.dumps(values, sort_keys=True)


def answer_record(answer: Wire) -> RecordDict:
    """A site's message of a secure sum as a record."""
    return RecordDict({_ANSWER: ConfigRecord({"json": json.dumps(answer)})})


def answer_of(record: RecordDict, read: Callable[[Wire], Read]) -> Read:
    """The message of a secure sum in a record.

    Args:
        record: From a site.
        read: Reads its JSON types strictly.

    Raises:
        MessageError: If there is none, or it is malformed.
    """
    text = record.config_records.get(_ANSWER, ConfigRecord()).get("json")
    if not isinstance(text, str) or len(text) > MAX_BODY_BYTES:
        raise MessageError(
            f"Expected an answer of at most {MAX_BODY_BYTES} bytes.", code="secure-sum-message"
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    return read_wire(content, read)


def read_wire(content: object, read: Callable[[Wire], Read]) -> Read:
    """One message of a secure sum.

    Raises:
        MessageError: If it is malformed.
    """
    try:
        if isinstance(content, dict):
            return read(content)
    except MedflError as error:
        raise MessageError(str(error), code=error.code) from None
    raise MessageError("Expected a message of a secure sum.", code="secure-sum-message")


def masked_record(update: SiteUpdate, masked: MaskedInput) -> RecordDict:
    """A masked vector, and what it has cost, as a record."""
    vector = np.frombuffer(masked.vector, dtype=np.uint8)
    record = RecordDict({**to_record(update), **answer_record(masked.to_dict())})
    record[_MASKED] = ArrayRecord({"vector": Array(vector)})
    return record


def masked_of(record: RecordDict) -> MaskedInput:
    """The masked vector in a record.

    Raises:
        MessageError: If there is none, or it is malformed.
    """
    array = record.array_records.get(_MASKED, ArrayRecord()).get("vector")
    if array is None or array.dtype != "uint8" or array.stype != "numpy.ndarray":
        raise MessageError("Expected a masked vector, found none.", code="secure-sum-message")
    # numpy's header of a vector has a length that is known: whatever follows it is the vector.
    size, data = int(np.prod(array.shape)), array.data
    header = len(data) - size
    if size > MAX_WEIGHT_BYTES or not 0 < header <= _LONGEST_HEADER:
        raise MessageError("Expected a vector of its declared size.", code="secure-sum-message")
    vector = data[header:]
    return answer_of(record, lambda content: MaskedInput.from_dict(content, vector=vector))
