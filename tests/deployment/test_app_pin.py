"""A site runs one app and takes no settings of a run, whatever the server ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import flwr.supernode.start_client_internal as supernode
import pytest
from flwr.app import Message, RecordDict
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.nodestate import NodeStateFactory

from medfl.deployment.flower.app_pin import pin_app
from medfl.deployment.thin_app import THIN_APP, ThinApp

OTHER = ThinApp(server=THIN_APP.server, client="elsewhere:app")
RUN = 7


class Pulled:
    """One message that a SuperNode pulls from a server, and what the site stores of it."""

    def __init__(self, run: Run, content: bytes) -> None:
        stores = ObjectStoreFactory()
        self.state = NodeStateFactory(objectstore_factory=stores).state()
        self.state.set_node_id(3)
        message = Message(RecordDict(), 3, "query")
        message.metadata.__dict__["_run_id"] = RUN
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {name: value.deflate() for name, value in get_all_nested_objects(message).items()}
        self.answer = supernode._pull_and_store_message(
            state=self.state,
            object_store=stores.store(),
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=lambda _: run,
            get_fab=lambda *_: Fab(run.fab_hash, content, {}),
            pull_object=lambda _, name: objects[name],
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )

    @property
    def error(self) -> str:
        """Reason of the reply that is waiting to be sent; empty text if there is none."""
        replies = self.state.get_messages_legacy(is_reply=True)
        return str(replies[0].error.reason) if replies else ""


@pytest.fixture
def pulled(as_server: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a site with the pin pull a message of a run."""
    monkeypatch.setattr(supernode, "_pull_and_store_message", supernode._pull_and_store_message)
    pin_app(THIN_APP.digest)

    def pull(*, content: bytes = THIN_APP.content, **changes: Any) -> Pulled:
        run = Run.create_empty(RUN)
        permitted = {"fab_hash": THIN_APP.digest, "fab_id": "medfl/medfl", "fab_version": "0"}
        return Pulled(replace(run, **{**permitted, **changes}), content)

    return pull


def test_a_message_of_the_pinned_app_reaches_the_site(pulled: Any) -> None:
    message = pulled()
    assert message.answer == RUN
    assert message.state.get_run(RUN) is not None
    assert message.error == ""


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fab_hash": OTHER.digest, "content": OTHER.content}, "policy-app"),
        ({"content": OTHER.content}, "policy-app"),
        ({"primary_task_type": "flwr-agentapp"}, "policy-app"),
        ({"override_config": {"epsilon": 100.0}}, "policy-run-config"),
    ],
    ids=["another app", "other bytes under the pinned name", "an agent", "a setting"],
)
def test_anything_else_is_refused_before_it_is_stored(
    changes: dict[str, Any], code: str, pulled: Any
) -> None:
    message = pulled(**changes)
    assert message.error == code
    assert message.state.get_run(RUN) is None
    assert message.state.get_messages_legacy(is_reply=False) == []


def test_the_thin_app_is_one_that_flower_installs_and_holds_no_code(tmp_path: Path) -> None:
    installed = install_from_fab(THIN_APP.content, install_dir=tmp_path, skip_prompt=True)
    assert [path.name for path in installed.rglob("*")] == ["pyproject.toml"]
    components = get_fab_config(THIN_APP.content)["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": THIN_APP.server, "clientapp": THIN_APP.client}


def test_the_thin_app_is_the_same_on_every_machine() -> None:
    again = ThinApp(server=THIN_APP.server, client=THIN_APP.client)
    assert again.content == THIN_APP.content
    assert b"\x78\x9c" not in THIN_APP.content
    assert OTHER.digest != THIN_APP.digest
