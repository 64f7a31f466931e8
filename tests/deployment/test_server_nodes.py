"""What a SuperLink lets in follows the list of admitted sites, with Flower's own book of nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.common.constant import NOOP_FLWR_AID
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.error import FlowerError
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.servicer.control import control_handlers

from medfl.deployment.admission import AdmittedSite, read_bundle
from medfl.deployment.coordinator.node_registry import align_nodes
from medfl.deployment.flower.control import Control
from medfl.errors import FederationError
from medfl.protocol.keys import SiteKeys

# How Flower configures the library that sets up its database.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")


class Client:
    """Flower's handlers of the control path without a network between."""

    def __init__(self, database: Path) -> None:
        _, factory = get_objectstore_linkstate_factories(str(database), NoOpFederationManager())
        self.state = factory.state()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        handlers = {
            "ListNodes": control_handlers.list_nodes,
            "RegisterNode": control_handlers.register_node,
            "UnregisterNode": control_handlers.unregister_node,
        }

        def call(request: Any) -> Any:
            self.calls.append(name)
            account = AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name="")
            try:
                return handlers[name](request, account, self.state)
            except FlowerError as error:
                answer = httpx.Response(400)
                raise httpx.HTTPStatusError(
                    str(error), request=httpx.Request("POST", "https://here"), response=answer
                ) from None

        return call

    def __call__(self, site: AdmittedSite) -> bool:
        """Whether the node of a site gets in."""
        node = self.state.get_node_id_by_public_key(site.node_key_pem)
        return node is not None and self.state.activate_node(node, heartbeat_interval=30)


class HereControl(Control):
    """A control without a network."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client


@pytest.fixture
def flower(tmp_path: Path) -> Client:
    return Client(tmp_path / "flower.db")


@pytest.fixture
def control(flower: Client) -> HereControl:
    return HereControl(flower)


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, AdmittedSite]:
    made = {}
    for name in ("east", "north", "south"):
        keys = SiteKeys.create(tmp_path / name)
        keys.write_public(tmp_path / f"{name}.pub", folder=tmp_path / name)
        made[name] = read_bundle(tmp_path / f"{name}.pub").site
    return made


def test_admitted_sites_get_in_and_nobody_else(
    flower: Client, control: HereControl, sites: dict[str, AdmittedSite]
) -> None:
    stranger = sites.pop("south")
    align_nodes(sites, control)
    assert set(control.nodes()) == {site.node_key_pem for site in sites.values()}
    assert flower(sites["north"])
    assert not flower(stranger)


def test_a_revoked_site_is_shut_out_also_while_it_is_connected(
    flower: Client, control: HereControl, sites: dict[str, AdmittedSite]
) -> None:
    align_nodes(sites, control)
    north = sites.pop("north")
    assert flower(north)
    node = control.nodes()[north.node_key_pem]
    align_nodes(sites, control)
    assert north.node_key_pem not in control.nodes()
    assert not flower(north)
    # What it sends next is not authenticated, and its heartbeat is not believed.
    assert flower.state.get_node_id_by_public_key(north.node_key_pem) is None
    assert not flower.state.acknowledge_node_heartbeat(node, 30)
    assert flower(sites["south"])


def test_exchanged_keys_take_over_and_the_old_ones_are_shut_out(
    flower: Client, control: HereControl, sites: dict[str, AdmittedSite]
) -> None:
    new = sites.pop("south")
    align_nodes(sites, control)
    old, sites["north"] = sites["north"], new
    align_nodes(sites, control)
    assert flower(new)
    assert not flower(old)
    assert set(control.nodes()) == {site.node_key_pem for site in sites.values()}


def test_what_is_in_line_is_left_alone(
    flower: Client, control: HereControl, sites: dict[str, AdmittedSite]
) -> None:
    align_nodes(sites, control)
    flower.calls.clear()
    align_nodes(sites, control)
    assert flower.calls == ["ListNodes"]


def test_a_key_that_was_let_go_is_never_taken_again(
    control: HereControl, sites: dict[str, AdmittedSite]
) -> None:
    align_nodes(sites, control)
    align_nodes({}, control)
    assert control.nodes() == {}
    with pytest.raises(FederationError, match="register the node of 'north'"):
        control.register(sites["north"], name="north")


def test_a_node_that_is_not_there_cannot_be_let_go(control: HereControl) -> None:
    with pytest.raises(FederationError, match="did not unregister a node"):
        control.unregister(17)


def test_it_is_known_who_is_connected_and_since_when(
    flower: Client, control: HereControl, sites: dict[str, AdmittedSite]
) -> None:
    align_nodes(sites, control)
    for name in ("east", "north"):
        assert flower(sites[name])
    flower.state.deactivate_node(control.nodes()[sites["east"].node_key_pem])
    seen = control.connections()
    at = {name: seen[site.node_key_pem] for name, site in sites.items()}
    assert {name: connection.connected for name, connection in at.items()} == {
        "east": False,
        "north": True,
        "south": False,
    }
    assert at["south"].since is None
    for name in ("east", "north"):
        since = at[name].since
        assert since is not None
        assert since.tzinfo is not None
