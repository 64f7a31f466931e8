"""A SuperNode in this process, which waits behind proxies, asks often and stays connected.

Private names of Flower's: the command that is run in this process, its web server, the clock by
which it asks for messages, the failures after which it tries again, and what tells the server that
it is there.
"""

from __future__ import annotations

import importlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import httpx
import uvicorn
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.retry import http_retry
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode

ASK_SECONDS = 1.0
"""How often the node asks the server for messages."""

logger = logging.getLogger(__name__)


def wait_behind_proxies() -> None:
    """Let the node try again where a proxy says that the server is not there, as without one."""
    known = http_retry._RETRYABLE_TRANSPORT_ERRORS
    http_retry._RETRYABLE_TRANSPORT_ERRORS = (*known, httpx.ProxyError)


def ask_often() -> None:
    """Let the node ask for messages every second; Flower's three make up most of a small round."""
    start_client_internal.time = SimpleNamespace(  # type: ignore[attr-defined, assignment]
        sleep=lambda seconds: time.sleep(min(seconds, ASK_SECONDS))
    )


def stay_connected() -> None:
    """Let the node say that it is there again after any failure to say so.

    One answer that Flower does not foresee, as of a proxy that is restarted, would end its only
    thread that says so; the server would ask this site nothing any more.
    """

    def lasting(say: Callable[[], bool]) -> HeartbeatSender:
        told = False

        def say_again() -> bool:
            nonlocal told
            try:
                return say()
            except Exception as error:  # noqa: BLE001  tried again, whatever it is
                if not told:
                    logger.warning(
                        "The server did not acknowledge that this site is there: %s. "
                        "The site keeps trying.",
                        str(error).partition("\n")[0],
                    )
                told = True
                return False

        return HeartbeatSender(say_again)

    fleet_http_connection.HeartbeatSender = lasting  # type: ignore[assignment, attr-defined]


def run_node(arguments: Sequence[str], *, place: socket.socket) -> None:
    """Run until a signal comes.

    Args:
        arguments: Of the command `flower-supernode`.
        place: Where ClientApps reach the node, bound already.
    """

    class Server(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            super().run(sockets=sockets or [place])

    # The package's attribute of this name is the command, not its module.
    command = importlib.import_module(flower_supernode.__module__)
    # Flower would listen on a number, which is anybody's until then.
    command.uvicorn = SimpleNamespace(  # type: ignore[attr-defined]
        Config=uvicorn.Config, Server=Server
    )
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
