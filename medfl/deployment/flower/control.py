"""`Control`: the coordinator's own requests to the SuperLink.

Flower's command line would start a SuperLink by itself and keep its own configuration; these few
requests need neither. Private names of Flower's: its client of the control path.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, Self

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from medfl.deployment.admission import AdmittedSite
from medfl.deployment.flower.guard import CONTROL_HEADER, OPEN_PATH
from medfl.deployment.thin_app import ThinApp
from medfl.errors import FederationError

Unreachable = httpx.TransportError
"""The server does not answer."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far Flower is with a run.

    Attributes:
        finished: Nothing more will happen.
        completed: Its ServerApp came to its end.
        details: Why not, in words.
    """

    finished: bool
    completed: bool
    details: str


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Whether a registered node is there.

    Attributes:
        connected: Whether it has been heard of lately.
        since: Since when it is there, or away; None if it never was there.
    """

    connected: bool
    since: datetime | None


class ControlAccess(Protocol):
    """What reaches the control path of a SuperLink: its address, its authority, and the secret."""

    @property
    def local_address(self) -> str:
        """``HOST:PORT`` on this machine."""

    @property
    def authority(self) -> Path:
        """Certificate of the authority that its own is signed by."""

    @property
    def control_secret(self) -> str:
        """What a request has to bring."""


class Control:
    """A connection to the SuperLink on this machine.

    Args:
        access: The server's files, which only its owner can read.
    """

    def __init__(self, access: ControlAccess) -> None:
        self._client = ControlHttpClient.from_server_address(
            server_address=access.local_address,
            insecure=False,
            root_certificates=access.authority.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="medfl"),
                _Secret(access.control_secret),
            ],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def nodes(self) -> dict[bytes, int]:
        """Identifiers of the registered nodes by their public key (PEM)."""
        return {node.public_key: node.node_id for node in self._registered()}

    def connections(self) -> dict[bytes, Connection]:
        """Whether each registered node is there, by its public key (PEM)."""
        return {node.public_key: _connection(node) for node in self._registered()}

    def register(self, site: AdmittedSite, *, name: str) -> None:
        """Let the node of a site join.

        Raises:
            FederationError: If the server will not have it.
        """
        try:
            self._client.RegisterNode(RegisterNodeRequest(public_key=site.node_key_pem, name=name))
        except httpx.HTTPStatusError as error:
            raise FederationError(
                f"The server did not register the node of {name!r}: HTTP "
                f"{error.response.status_code}."
            ) from None

    def unregister(self, node: int) -> None:
        """Shut a node out permanently: Flower never accepts its key again.

        Raises:
            FederationError: If the server does not know it.
        """
        try:
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))
        except httpx.HTTPStatusError as error:
            raise FederationError(
                f"The server did not unregister a node: HTTP {error.response.status_code}."
            ) from None

    def open_fleet(self) -> None:
        """Let the registered nodes in."""
        self._client._unary_unary(
            path=OPEN_PATH,
            rpc_method="/medfl/OpenFleet",
            request=ListNodesRequest(),
            response_type=ListNodesResponse,
        )

    def start(self, app: ThinApp) -> int:
        """Start a run of an app and return Flower's number of it.

        Raises:
            FederationError: If it cannot be started.
        """
        fab = Fab(hash_str=app.digest, content=app.content)
        try:
            answer = self._client.StartRun(StartRunRequest(fab=fab))
        except httpx.HTTPError as error:
            raise FederationError(
                "Expected a running server (`medfl server start`) that takes the study, found: "
                f"{error}."
            ) from None
        return int(answer.run_id)

    def state(self, run: int) -> RunState:
        """How far a run is.

        Raises:
            FederationError: If the server does not know it.
        """
        runs = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict
        if run not in runs:
            raise FederationError(f"The server does not know run {run}.")
        status = runs[run].status
        return RunState(
            finished=status.status == "finished",
            completed=status.sub_status == "completed",
            details=status.details,
        )

    def stop(self, run: int) -> None:
        """Stop a run; one that ended already stays as it is."""
        try:
            self._client.StopRun(StopRunRequest(run_id=run))
        except httpx.HTTPError:
            return

    def _registered(self) -> list[NodeInfo]:
        # Flower keeps what was unregistered in its list.
        listed = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [node for node in listed if node.status != NodeStatus.UNREGISTERED]


def _connection(node: NodeInfo) -> Connection:
    connected = node.status == NodeStatus.ONLINE
    since = node.last_activated_at if connected else node.last_deactivated_at
    return Connection(connected=connected, since=datetime.fromisoformat(since) if since else None)


class _Secret:
    """Adds the secret of the control path to a request."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[CONTROL_HEADER] = self._secret
        return call_next(context)
