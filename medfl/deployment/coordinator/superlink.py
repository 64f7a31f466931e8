"""The SuperLink of a server, as a process of its own: Flower's application behind the guard.

Private names of Flower's: the parts that its command `flower-superlink` is made of, since the
command leaves no place for a guard.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.superlink.cli.flower_superlink import (
    SuperLinkLifespan,
    _parse_superlink_lifespan_config,
)
from flwr.superlink.main import create_app

from medfl.deployment.coordinator.guard import Guard
from medfl.deployment.coordinator.server_folder import ServerFolder


def arguments(folder: ServerFolder) -> list[str]:
    """What Flower's own command would be given."""
    return [
        *("--host", folder.listening_address, "--port", str(folder.port)),
        *("--ssl-certfile", str(folder.certificate), "--ssl-keyfile", str(folder.certificate_key)),
        *("--ssl-ca-certfile", str(folder.authority)),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder.superexec_secret)),
        *("--database", str(folder.database)),
        "--disable-runtime-dependency-installation",
    ]


def main() -> None:
    """Serve until a signal comes or the parent process is gone.

    Reads the server's folder and the parent's process number from the command line.
    """
    folder, parent = ServerFolder(Path(sys.argv[1])), int(sys.argv[2])
    sys.argv = ["flower-superlink", *arguments(folder)]
    config = _parse_superlink_lifespan_config()
    application = create_app(config, SuperLinkLifespan)
    start_parent_process_monitor(parent)
    uvicorn.run(
        Guard(application, control_secret=folder.control_secret),
        host=config.host,
        port=config.port,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        # The guard goes by the address of the connection, never by what a header says.
        proxy_headers=False,
        server_header=False,
        log_config=get_uvicorn_log_config(console_handler.level),
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
