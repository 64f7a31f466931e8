"""A site's SuperNode, as a process of its own: the connection to the server, and the pinned app.

It hands its messages out over loopback, and only to who knows the secret that both processes of the
site got from their parent. Private names of Flower's: the command that is run in this process, the
clock by which it asks for messages, and the failures after which it tries again.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
from flwr.supercore.retry import http_retry
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from medfl.deployment.child import as_file, log_to_parent, read_secret
from medfl.deployment.hospital.app_pin import pin_app
from medfl.deployment.hospital.environment import load_hospital
from medfl.deployment.thin_app import THIN_APP
from medfl.protocol.keys import KEYS, NODE_KEY

LOCAL = "127.0.0.1"

ASK_SECONDS = 1.0
"""How often the node asks the server for messages."""


def arguments(
    site_file: Path, *, server: str, authority: Path, port: int, secret: str
) -> list[str]:
    """What Flower's own command would be given.

    Args:
        site_file: The site's file.
        server: ``HOST:PORT`` of the coordinator's server.
        authority: Certificate of the coordinator's authority.
        port: Where the ClientApps reach the node, on this machine.
        secret: File that holds the secret of whoever starts ClientApps.
    """
    keys = load_hospital(site_file).state / KEYS
    return [
        *("--superlink", server, "--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(keys / NODE_KEY)),
        *("--host", LOCAL, "--port", str(port)),
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--node-config", f'site-file="{site_file}"'),
    ]


def wait_behind_proxies() -> None:
    """Let the node try again where a proxy says that the server is not there, as without one."""
    known = http_retry._RETRYABLE_TRANSPORT_ERRORS
    http_retry._RETRYABLE_TRANSPORT_ERRORS = (*known, httpx.ProxyError)


def ask_often() -> None:
    """Let the node ask for messages every second; Flower's three make up most of a small round."""
    start_client_internal.time = SimpleNamespace(  # type: ignore[attr-defined, assignment]
        sleep=lambda seconds: time.sleep(min(seconds, ASK_SECONDS))
    )


def main() -> None:
    """Run until a signal comes or the parent process is gone.

    Reads the site file, the server, its authority and the port from the command line.
    """
    site_file, server, authority, port = sys.argv[1:]
    secret = as_file(read_secret())
    log_to_parent()
    wait_behind_proxies()
    ask_often()
    pin_app(THIN_APP.digest)
    given = arguments(
        Path(site_file), server=server, authority=Path(authority), port=int(port), secret=secret
    )
    sys.argv = ["flower-supernode", *given]
    logging.getLogger(__name__).info("Connecting to %s.", server)
    flower_supernode()


if __name__ == "__main__":
    main()
