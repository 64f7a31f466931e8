"""The ClientApp: Flower's messages in, the site's answers out.

A failure leaves the site as a fixed code, and one line about it goes to the site's own log. Flower
would otherwise send the exception's text, which may name folders or patients, to the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfl.errors import MessageError
from medfl.privacy.engine import StepObserver
from medfl.protocol.failures import code_of, line_of
from medfl.protocol.messages import (
    FINISH,
    Body,
    EvaluateTask,
    FinishTask,
    Proposal,
    TrainTask,
    read_body,
    read_weights,
    refusal,
    refusal_code,
    to_record,
)
from medfl.protocol.secure_round import (
    ADD,
    ADVERTISE,
    CONFIRM,
    ROSTER,
    SHARE,
    UNMASK,
    AddTask,
    AdvertTask,
    ConfirmTask,
    RosterTask,
    ShareTask,
    UnmaskTask,
    answer_record,
    masked_record,
)
from medfl.site import secure_round
from medfl.site.agreement import declare, join
from medfl.site.final_model import receive
from medfl.site.round import train_update
from medfl.site.scores import evaluate
from medfl.site.state import SiteState

logger = logging.getLogger(__name__)

StateOf = Callable[[Context], SiteState]
"""Finds the site of a node: the only difference between simulation and deployment."""

ObserverOf = Callable[[str], StepObserver]
"""Progress of the site with this name."""

KINDS = frozenset(
    {"query", "train", "evaluate", FINISH, ROSTER, ADVERTISE, SHARE, ADD, CONFIRM, UNMASK}
)
"""Flower's types of the messages that a site answers."""


OnRefusal = Callable[[Context, str, str], None]
"""Told of each refusal: the node's context, the kind of the message, the code."""


class _Answer(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


BodyType = TypeVar("BodyType", bound=Body)
Phase = Callable[[SiteState, BodyType], _Answer]
"""What a site does with one question of a secure sum that carries no weights."""


def ignore_refusal(_: Context, __: str, ___: str) -> None:
    """What a site without an audit log does with a refusal."""


def make_client_app(
    state_of: StateOf, *, observer_of: ObserverOf, on_refusal: OnRefusal = ignore_refusal
) -> ClientApp:
    """The app that every site runs.

    Args:
        state_of: Finds the site's files.
        observer_of: Where the site's progress is shown.
        on_refusal: Who writes refusals down; it must not raise.
    """
    app = _SiteApp(on_refusal)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return _answer(
            message,
            lambda record: to_record(declare(state_of(context), read_body(record, Proposal))),
        )

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work(record: RecordDict) -> RecordDict:
            site_state = state_of(context)
            update, weights = train_update(
                site_state,
                read_body(record, TrainTask),
                read_weights(record),
                expires=message.metadata.created_at + message.metadata.ttl,
                on_step=observer_of(site_state.site.name),
            )
            return to_record(update, weights=weights)

        return _answer(message, work)

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        return _answer(
            message,
            lambda record: to_record(
                evaluate(state_of(context), read_body(record, EvaluateTask), read_weights(record))
            ),
        )

    @app.query(_name(FINISH))
    def finish(message: Message, context: Context) -> Message:
        return _answer(
            message,
            lambda record: to_record(
                receive(state_of(context), read_body(record, FinishTask), read_weights(record))
            ),
        )

    _answer_secure_sums(app, state_of, observer_of=observer_of)
    return app


def _answer_secure_sums(app: ClientApp, state_of: StateOf, *, observer_of: ObserverOf) -> None:
    """Register the phases of `medfl.site.secure_round`."""

    @app.query(_name(ROSTER))
    def roster(message: Message, context: Context) -> Message:
        return _answer(
            message,
            lambda record: to_record(join(state_of(context), read_body(record, RosterTask))),
        )

    @app.train(_name(ADD))
    def add(message: Message, context: Context) -> Message:
        def work(record: RecordDict) -> RecordDict:
            site_state = state_of(context)
            update, masked = secure_round.add(
                site_state,
                read_body(record, AddTask),
                read_weights(record),
                expires=message.metadata.created_at + message.metadata.ttl,
                on_step=observer_of(site_state.site.name),
            )
            return masked_record(update, masked)

        return _answer(message, work)

    def register(kind: str, task: type[BodyType], phase: Phase[BodyType]) -> None:
        @app.query(_name(kind))
        def answer(message: Message, context: Context) -> Message:
            return _answer(
                message,
                lambda record: answer_record(
                    phase(state_of(context), read_body(record, task)).to_dict()
                ),
            )

    register(ADVERTISE, AdvertTask, secure_round.advertise)
    register(SHARE, ShareTask, secure_round.share)
    register(CONFIRM, ConfirmTask, secure_round.confirm)
    register(UNMASK, UnmaskTask, secure_round.unmask)


def _name(kind: str) -> str:
    """What Flower calls a message of its type that is not the usual one."""
    return kind.partition(".")[2]


def ignore_steps(done: int, total: int) -> None:
    """An observer that shows nothing."""


class _SiteApp(ClientApp):
    """Refuses a kind of message that it does not know; Flower would raise and send a text."""

    def __init__(self, on_refusal: OnRefusal) -> None:
        super().__init__()
        self._on_refusal = on_refusal

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if kind in KINDS:
            reply = super().__call__(message, context)
        else:
            # A server chose the word, so that it is not written down.
            kind, reply = "unknown", _answer(message, _refuse_kind)
        code = refusal_code(reply.content)
        if code:
            self._on_refusal(context, kind, code)
        return reply


def _refuse_kind(_: RecordDict) -> RecordDict:
    raise MessageError(
        f"Expected a message of a kind among {sorted(KINDS)}, found another.", code="message-kind"
    )


def _answer(message: Message, work: Callable[[RecordDict], RecordDict]) -> Message:
    try:
        content = work(message.content)
    except Exception as error:  # noqa: BLE001  an unforeseen failure's text must not leave either
        code = code_of(error)
        logger.warning("Refused with code %s: %s", code, line_of(error))
        content = refusal(code)
    return Message(content, reply_to=message)
