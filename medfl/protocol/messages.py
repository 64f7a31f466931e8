"""What server and sites say to each other: typed values on one side, Flower records on the other.

Everything that crosses the boundary is listed here and nowhere else: a body, checked by its model,
and for some messages weights, checked array by array before anything is allocated from them.
A malformed record raises `MessageError` with a code.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import tokenize
from collections.abc import Mapping
from typing import Annotated, Self, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from medfl.config import StudyConfig
from medfl.config.files import Section
from medfl.config.site import Count, LabelScheme, Modality, Name, Positive, Purpose, Region
from medfl.errors import MessageError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import Rotation, SiteKeys
from medfl.signatures import is_signed

Weights = dict[str, torch.Tensor]
"""Trainable parameters by name, float32 on the CPU."""

FINISH = "query.finish"
"""Flower's type of the message that brings the final model."""

MAX_BODY_BYTES = 4_000_000
MAX_WEIGHT_BYTES = 2**30
MAX_SEEN_IMAGES = 20_000
"""That a starting model may have seen; more would not fit into a body."""
_ARRAYS = "arrays"
_BODY = "body"
_ERROR = "error"
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_CODE = 40
# What numpy's parser of headers raises for text that it cannot read.
_UNREADABLE = (
    EOFError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


def _mechanism(value: object) -> object:
    if not isinstance(value, dict):
        return value
    try:
        return Mechanism.from_dict(value)
    except TypeError:  # text where a number belongs; pydantic expects a ValueError
        raise ValueError("expected numbers") from None


def _of_one_round(mechanism: Mechanism) -> Mechanism:
    if mechanism.clip_norm_schedule is not None:
        raise ValueError("expected the mechanism of one round, found that of a whole run")
    return mechanism


WireMechanism = Annotated[
    Mechanism, BeforeValidator(_mechanism), PlainSerializer(Mechanism.to_dict)
]
RoundMechanism = Annotated[WireMechanism, AfterValidator(_of_one_round)]
Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=True)]
Identifier = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_./-]+$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SeenImage = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
PublicWeight = Annotated[float, Field(gt=0, le=1e6)]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Sequence = Annotated[int, Field(ge=0)]
# Beyond any study; a number out of bounds could keep an accountant busy for hours.
RunSteps = Annotated[int, Field(ge=0, le=1_000_000)]
# Of all runs of a site's lifetime; nothing is computed from them.
LifetimeSteps = Annotated[int, Field(ge=0, le=1_000_000_000)]
UNSIGNED = "0" * 128


class Body(Section):
    """The part of a message that is not weights."""

    model_config = ConfigDict(ser_json_inf_nan="constants")


class Statement(Body):
    """What a site says of its own ledger, signed with its event key.

    Attributes:
        run: The run that it speaks of.
        ledger_sequence: Rows of the site's ledger.
        ledger_hash: Hash of its last row.
        run_steps: Noisy steps that the ledger was charged for in this run so far, lost ones too.
        signature: Over everything else; `UNSIGNED` until it is signed.
    """

    site: Name
    run: Identifier
    ledger_sequence: Sequence
    ledger_hash: Digest
    run_steps: RunSteps
    signature: Signature = UNSIGNED

    def signed(self, keys: SiteKeys) -> Self:
        """The same statement with the signature of a site."""
        return self.model_copy(update={"signature": keys.sign(self._content())})

    def is_signed_by(self, event_key: str) -> bool:
        """Whether the holder of this event key said exactly this."""
        return is_signed(self._content(), signature=self.signature, event_key=event_key)

    def _content(self) -> bytes:
        # The kind is signed as well: no statement can pass for one of another kind.
        kind = type(self).__name__
        return f"medfl {kind}\0{self.model_dump_json(exclude={'signature'})}".encode()


class Proposal(Body):
    """Server to site, before round 1: will you take part in this study?

    Attributes:
        seen: Digests of the images that the study's starting model has seen, whose list the study
            pins; see `medfl.site.seen_patients`.
        beside: The other runs that the server has under way. Whatever else a site has agreed to
            has ended, or is suspended until it is proposed again; see `medfl.site.open_runs`.
    """

    study: StudyConfig
    run: Identifier
    private: bool
    seen: tuple[SeenImage, ...] = Field(default=(), max_length=MAX_SEEN_IMAGES)
    beside: tuple[Identifier, ...] = Field(default=(), max_length=1000)


class Declaration(Statement):
    """Site to server: public constants, and the mechanism that the site will run.

    Attributes:
        epsilon: The site's lifetime epsilon after all rounds; infinite for a baseline.
        event_key: Public key under which the site signs.
        rotations: How that key followed from earlier ones.
        affected_steps: Steps in the site's ledger, over all runs, that medfl 0.1 charged; they
            lost more than the ledger and `epsilon` say.
    """

    purpose: Purpose
    declared_patients: Count
    weight: PublicWeight
    modalities: tuple[Modality, ...]
    label_scheme: LabelScheme
    delta: Positive
    epsilon_budget: Positive
    epsilon: Epsilon
    mechanism: WireMechanism
    event_key: Digest
    rotations: tuple[Rotation, ...] = Field(default=(), max_length=1000)
    affected_steps: LifetimeSteps = 0


class TrainTask(Body):
    """Server to site: one round's work, with the global model's weights.

    Attributes:
        message_id: The same for a repeated request, so that the site can send the same bytes again.
    """

    study: StudyConfig
    run: Identifier
    round: Count
    message_id: Identifier
    mechanism: RoundMechanism


class SiteUpdate(Statement):
    """Site to server: the event that the noisy weights beside it have cost.

    Attributes:
        weights_digest: Of these weights, see `weights_digest`.
    """

    round: Count
    message_id: Identifier
    mechanism: RoundMechanism
    steps: Count
    weights_digest: Digest


class EvaluateTask(Body):
    """Server to site: score the weights beside it on held-out patients.

    Attributes:
        distances: Whether to answer with distances and lesion-wise scores, which take their time.
    """

    study: StudyConfig
    round: Annotated[int, Field(ge=0)]
    distances: bool


class PatientScore(Body):
    """One region of one held-out patient, under the patient's pseudonym.

    Attributes:
        hd95_mm: None where it was not asked for, like the lesion-wise scores.
    """

    patient: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    region: Region
    dice: Annotated[float, Field(ge=0, le=1)]
    hd95_mm: Annotated[float, Field(ge=0)] | None
    lesion_dice: Annotated[float, Field(ge=0, le=1)] | None = None
    lesion_hd95_mm: Annotated[float, Field(ge=0)] | None = None


class Scores(Body):
    """Site to server: scores of held-out patients; open data only."""

    site: Name
    scores: tuple[PatientScore, ...]


class Participant(Body):
    """What a model's file says of one site that took part in its training."""

    label_scheme: LabelScheme
    mechanism: WireMechanism


class FinishTask(Body):
    """Server to site, once after the last round: the final model of the run, to keep.

    Attributes:
        sites: All of the run, so that the site's file says what the server's says.
    """

    study: StudyConfig
    run: Identifier
    sites: dict[Name, Participant]


class Finished(Body):
    """Site to server: it has the final model. The name and the run; nothing that it computed."""

    site: Name
    run: Identifier


BodyType = TypeVar("BodyType", bound=Body)


def to_record(body: Body, *, weights: Mapping[str, torch.Tensor] | None = None) -> RecordDict:
    """A message as Flower records."""
    record = RecordDict({_BODY: ConfigRecord({"json": body.model_dump_json()})})
    if weights is not None:
        record[_ARRAYS] = to_arrays(weights)
    return record


def read_body(record: RecordDict, model: type[BodyType]) -> BodyType:
    """The body of a message.

    Raises:
        MessageError: If it is missing, too large, or breaks a rule of `model`.
    """
    text = record.config_records.get(_BODY, ConfigRecord()).get("json")
    if not isinstance(text, str) or len(text) > MAX_BODY_BYTES:
        raise MessageError(f"Expected a JSON body of at most {MAX_BODY_BYTES} bytes.")
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MessageError(
            f"Expected a valid {model.__name__}, found a problem at {place!r}: {first['msg']}.",
            code="message-body",
        ) from None


def read_weights(record: RecordDict) -> Weights:
    """The weights of a message.

    Raises:
        MessageError: If they are missing or malformed.
    """
    if _ARRAYS not in record.array_records:
        raise MessageError("Expected weights, found none.", code="message-weights")
    return from_arrays(record.array_records[_ARRAYS])


def to_arrays(weights: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Weights as Flower's arrays, in ascending order of their names."""
    return ArrayRecord({name: Array(weights[name].numpy()) for name in sorted(weights)})


def from_arrays(arrays: ArrayRecord) -> Weights:
    """Flower's arrays as weights.

    Raises:
        MessageError: If one is no float32 array of exactly its declared shape, or all together are
            larger than `MAX_WEIGHT_BYTES`.
    """
    size = sum(len(array.data) for array in arrays.values())
    if size > MAX_WEIGHT_BYTES:
        raise MessageError(
            f"Expected weights of at most {MAX_WEIGHT_BYTES} bytes, found {size}.",
            code="message-size",
        )
    return {name: _tensor(array) for name, array in arrays.items()}


def weights_digest(weights: Weights) -> str:
    """SHA-256 over names and values in ascending order of the names, as hexadecimal text."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0" + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def expect(holds: bool, code: str, rule: str) -> None:
    """Raise MessageError with this code unless a rule holds."""
    if not holds:
        raise MessageError(f"Expected {rule}.", code=code)


def refusal(code: str) -> RecordDict:
    """What a site answers when it cannot or will not: the code and nothing else."""
    return RecordDict({_ERROR: ConfigRecord({"code": code})})


def refusal_code(record: RecordDict) -> str:
    """The code of a refusal; empty text if the record is none.

    Raises:
        MessageError: If the code is not a short word.
    """
    if _ERROR not in record.config_records:
        return ""
    code = record.config_records[_ERROR].get("code")
    # What a site puts here is shown to the coordinator: a word, and never a text in disguise.
    if not isinstance(code, str) or len(code) > _MAX_CODE or not _CODE.fullmatch(code):
        raise MessageError(f"Expected a code of at most {_MAX_CODE} letters.", code="refusal-code")
    return code


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype != "float32" or array.stype != "numpy.ndarray":
        raise MessageError(f"Expected float32, found {array.dtype!r}.", code="message-dtype")
    # The header is read by itself: `numpy.load` would allocate whatever it asks for.
    file = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except _UNREADABLE:
        raise MessageError("Expected a plain numpy array.", code="message-shape") from None
    start = file.tell()
    plain = version == (1, 0) and dtype == np.float32 and min(shape, default=0) >= 0
    complete = shape == tuple(array.shape) and start + 4 * math.prod(shape) == len(array.data)
    if not (plain and complete):
        raise MessageError("Expected the declared shape and type.", code="message-shape")
    values = np.frombuffer(array.data[start:], dtype=np.float32)
    return torch.from_numpy(values.reshape(shape, order="F" if fortran_order else "C").copy())
