"""A SuperNode that waits for its server although something in between takes its connections.

A router, or a proxy that hands TLS on, takes a connection before it knows whether the server is
there, and cuts it off when it is not. Flower takes that for a wrong certificate and gives up, but
its process goes on: such a site looks alive and takes part in nothing.

Private names of Flower's: what decides whether it tries again.
"""

from __future__ import annotations

import ssl

from flwr.supercore.retry import RetryInvoker
from flwr.supernode import fleet_http_connection


def wait_behind_routers() -> None:
    """Let the node try again where a TLS handshake was cut off; a wrong certificate stays one."""
    make = fleet_http_connection.make_simple_http_retry_invoker  # type: ignore[attr-defined]

    def patient() -> RetryInvoker:
        invoker: RetryInvoker = make()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: (
            not _was_cut_off(error) and gives_up is not None and gives_up(error)
        )
        return invoker

    fleet_http_connection.make_simple_http_retry_invoker = patient  # type: ignore[attr-defined]


def _was_cut_off(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        error = error.__cause__ or error.__context__
    return False
