"""A SuperLink behind the guard, in this process.

Private names of Flower's: the parts that its command `flower-superlink` is made of, since the
command leaves no place for a guard.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

import uvicorn
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.superlink.cli.flower_superlink import (
    SuperLinkLifespan,
    _parse_superlink_lifespan_config,
)
from flwr.superlink.main import create_app
from uvicorn.main import STARTUP_FAILURE

from medfl.deployment.flower.guard import Guard


def serve_guarded(
    arguments: Sequence[str],
    *,
    sockets: Sequence[socket.socket],
    control_secret: str,
    parent: int,
) -> None:
    """Serve until a signal comes or the parent process is gone.

    Args:
        arguments: Of the command `flower-superlink`.
        sockets: Where to listen, bound already; closed at the end.
        control_secret: What a request to the control path has to bring.
        parent: Number of the process to end with.
    """
    sys.argv = ["flower-superlink", *arguments]
    config = _parse_superlink_lifespan_config()
    application = create_app(config, SuperLinkLifespan)
    start_parent_process_monitor(parent)
    serving = uvicorn.Config(
        Guard(application, control_secret=control_secret),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        # The guard goes by the address of the connection, never by what a header says.
        proxy_headers=False,
        server_header=False,
        log_config=get_uvicorn_log_config(console_handler.level),
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(serving)
    server.run(sockets=list(sockets))
    if not server.started:
        sys.exit(STARTUP_FAILURE)
