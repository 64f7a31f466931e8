"""A site's own say in what its SuperNode runs: one app, and no settings of a run.

Flower lets the server ship any code. Here a message is accepted only if its run ships the pinned
app, whose bytes are checked, and overrides no setting; anything else is answered with an error
before it is stored, and never reaches a ClientApp. Private names of Flower's: the step of its
SuperNode that pulls a message, and the one that stores a reply.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import flwr.supernode.start_client_internal as supernode
from flwr.app import Error, Message
from flwr.app.user_config import UserConfig
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import Run
from flwr.supernode.nodestate import NodeState

from medfl.errors import PolicyRefused
from medfl.version import __version__

logger = logging.getLogger(__name__)


def pin_app(digest: str) -> None:
    """From now on, let this process' SuperNode accept one app only.

    Args:
        digest: SHA-256 of the app, as hexadecimal text.
    """
    pull = supernode._pull_and_store_message

    def pull_permitted(
        state: NodeState,
        object_store: ObjectStore,
        node_config: UserConfig,
        receive: Callable[[], tuple[Message, ObjectTree] | None],
        get_run: Callable[[int], Run],
        get_fab: Callable[[str, int], Fab],
        pull_object: Callable[[int, str], bytes],
        confirm_message_received: Callable[[int, str], None],
        trusted_entities: dict[str, str] | None,
    ) -> int | None:
        received: list[Message] = []

        def remember() -> tuple[Message, ObjectTree] | None:
            answer = receive()
            if answer is not None:
                received.append(answer[0])
                # The server chose the type's text.
                metadata = answer[0].metadata
                logger.info("A message of run %d: %.20r.", metadata.run_id, metadata.message_type)
            return answer

        def permitted_run(run_id: int) -> Run:
            run = get_run(run_id)
            require_permitted_run(run, digest=digest)
            return run

        def permitted_app(fab_hash: str, run_id: int) -> Fab:
            fab = get_fab(fab_hash, run_id)
            _expect(hashlib.sha256(fab.content).hexdigest() == digest, "policy-app", "its bytes")
            return fab

        try:
            return pull(
                state=state,
                object_store=object_store,
                node_config=node_config,
                receive=remember,
                get_run=permitted_run,
                get_fab=permitted_app,
                pull_object=pull_object,
                confirm_message_received=confirm_message_received,
                trusted_entities=trusted_entities,
            )
        except PolicyRefused as error:
            logger.warning("Refused with code %s: %s", error.code, error)
            message = received[-1]
            reply = Message(Error(ErrorCode.INVALID_FAB, error.code), reply_to=message)
            supernode._insert_message(reply, state, object_store)
            return message.metadata.run_id

    supernode._pull_and_store_message = pull_permitted


def require_permitted_run(run: Run, *, digest: str) -> None:
    """Refuse a run that ships another app, or settings.

    Args:
        run: As the server describes it.
        digest: SHA-256 of the app that is permitted, as hexadecimal text.

    Raises:
        PolicyRefused: If it does.
    """
    pinned = f"the app of medfl {__version__}, which this site runs"
    _expect(run.fab_hash == digest, "policy-app", pinned)
    _expect(run.primary_task_type == TaskType.SERVER_APP, "policy-app", "a run of a ServerApp")
    _expect(not run.override_config, "policy-run-config", "no settings of the run")


def _expect(holds: bool, code: str, rule: str) -> None:
    if not holds:
        raise PolicyRefused(f"Expected {rule}, found another.", code=code)
