"""A hospital's SuperNode: one outbound connection, the site's own key, and the pinned app."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import sys
from pathlib import Path

from medfl.errors import ConfigError
from medfl.federation.deployment.hospital import load_hospital
from medfl.federation.deployment.processes import flower_environment, free_port
from medfl.federation.deployment.thin_app import THIN_APP
from medfl.federation.site_keys import KEYS, NODE_KEY, SiteKeys

CONNECT_SECONDS = 10.0

_LOCAL = "127.0.0.1"


def run_site(site_file: Path, *, server: str, authority: Path) -> None:
    """Run a site until a signal comes; waits for a server that is not there yet.

    Args:
        site_file: The site's file.
        server: ``HOST:PORT`` of the coordinator's server.
        authority: Certificate of the coordinator's authority, as PEM.

    Raises:
        ConfigError: If the file breaks a rule or is no hospital's, if the site has no keys, or if
            the server shows a certificate of another authority.
    """
    site_file = site_file.resolve()
    site = load_hospital(site_file)
    if '"' in str(site_file) or "\\" in str(site_file):
        raise ConfigError(f"{site_file}: expected a path without quotes and backslashes.")
    SiteKeys.read(site.state / KEYS)
    require_trusted(server, authority=authority)
    home = site.state / "flower"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(flower_environment(home=home))
    sys.argv = [
        "flower-supernode",
        *("--superlink", server, "--root-certificates", str(authority.resolve())),
        *("--auth-supernode-private-key", str(site.state / KEYS / NODE_KEY)),
        *("--host", _LOCAL, "--port", str(free_port())),
        *("--isolation", "subprocess"),
        *("--node-config", f'site-file="{site_file}"'),
    ]
    # Here, so that Flower finds the environment that was just set.
    from flwr.supernode.cli import flower_supernode

    from medfl.federation.deployment.app_pin import pin_app

    # Flower writes its own lines; medfl's handler would repeat them.
    logging.getLogger("flwr").propagate = False
    pin_app(THIN_APP.digest)
    flower_supernode()


def require_trusted(server: str, *, authority: Path) -> None:
    """Refuse a server with a certificate of another authority; one that is not there may come.

    Args:
        server: ``HOST:PORT``.
        authority: The only authority that is trusted.

    Raises:
        ConfigError: If the certificate does not fit, the address is none, or there is no authority.
    """
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"Expected the server as HOST:PORT, found {server!r}.")
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError):
        raise ConfigError(f"{authority}: expected a certificate as PEM, found none.") from None
    try:
        with (
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{server}: expected a certificate of the authority in {authority}, found another "
            f"({error.verify_message})."
        ) from None
    except OSError:
        # Not there yet, or only to be reached through a proxy: the node keeps trying.
        return
