"""A SuperNode that finds its server again, whatever stands between them and whatever was lost.

A router, or a proxy that hands TLS on, takes a connection before it knows whether the server is
there, and ends it when it is not. Flower takes that for a wrong certificate and gives up without
ending its process: such a site looks alive and takes part in nothing. The same becomes of a node
that a server has no number for, as when its database was lost: it is known by its key, and has to
join again.

Private names of Flower's: when it gives up, and the request by which a node says that it is there.
"""

from __future__ import annotations

import logging
import os
import signal
import ssl
from typing import Any

from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore.retry import RetryInvoker
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

logger = logging.getLogger(__name__)

_connection: Any = fleet_http_connection  # names that it imports and does not offer


def wait_behind_routers() -> None:
    """Let the node try again where a TLS handshake was cut off; a wrong certificate stays one."""
    make = _connection.make_simple_http_retry_invoker

    def patient() -> RetryInvoker:
        invoker: RetryInvoker = make()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: (
            not _was_cut_off(error) and gives_up is not None and gives_up(error)
        )
        return invoker

    _connection.make_simple_http_retry_invoker = patient


def end_when_unknown() -> None:
    """End the node when the server has no number for it, so that the site is started anew."""
    _connection.FleetHttpClient = _Client


class _Client(FleetHttpClient):
    def SendNodeHeartbeat(  # noqa: N802
        self, request: SendNodeHeartbeatRequest
    ) -> SendNodeHeartbeatResponse:
        """Say that this node is there."""
        response = super().SendNodeHeartbeat(request)
        if not response.success:
            logger.error(
                "Expected a server that knows this connection, found one that does not, as after "
                "the loss of its database. The site ends, and joins again when it is started."
            )
            os.kill(os.getpid(), signal.SIGTERM)
        return response


def _was_cut_off(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        error = error.__cause__ or error.__context__
    return False
