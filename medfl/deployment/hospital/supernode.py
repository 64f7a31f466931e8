"""A site's SuperNode, as a process of its own: the connection to the server, and the pinned app.

It hands its messages out over loopback, and only to who knows the secret that both processes of the
site got from their parent.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

from medfl.deployment.flower.app_pin import pin_app
from medfl.deployment.flower.log_lines import log_to_parent
from medfl.deployment.flower.node import (
    ask_often,
    run_node,
    stay_connected,
    wait_behind_proxies,
)
from medfl.deployment.flower.reconnect import wait_behind_routers
from medfl.deployment.flower.turns import take_turns
from medfl.deployment.hospital.own_ledger import last_written
from medfl.deployment.hospital.site_file import load_hospital
from medfl.deployment.parent import as_file, read_secret
from medfl.deployment.thin_app import THIN_APP
from medfl.protocol.keys import KEYS, NODE_KEY


def arguments(site_file: Path, *, server: str, authority: Path, secret: str) -> list[str]:
    """What Flower's own command would be given.

    Args:
        site_file: The site's file.
        server: ``HOST:PORT`` of the coordinator's server.
        authority: Certificate of the coordinator's authority.
        secret: File with the secret of the process that starts ClientApps.
    """
    keys = load_hospital(site_file).state / KEYS
    return [
        *("--superlink", server, "--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(keys / NODE_KEY)),
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--node-config", f'site-file="{site_file}"'),
    ]


def main() -> None:
    """Run until a signal comes or the parent process is gone.

    Reads from the command line the site file, the server, its authority and the descriptor of the
    socket on which the ClientApps reach the node, on this machine.
    """
    site_file, server, authority, descriptor = sys.argv[1:]
    secret = as_file(read_secret())
    log_to_parent()
    wait_behind_proxies()
    wait_behind_routers()
    ask_often()
    stay_connected()
    pin_app(THIN_APP.digest)
    state = load_hospital(Path(site_file)).state
    take_turns(paid=lambda: last_written(state))
    given = arguments(Path(site_file), server=server, authority=Path(authority), secret=secret)
    logging.getLogger(__name__).info("Connecting to %s.", server)
    with socket.socket(fileno=int(descriptor)) as place:
        run_node(given, place=place)


if __name__ == "__main__":
    main()
