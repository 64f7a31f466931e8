"""A hospital's site: one outbound connection, and beside it a process for each message.

This process starts and watches two others, a SuperNode and what runs its ClientApps, and writes
their log. The three live and die together: if one of them ends by itself the site ends with an
error, so that the service manager starts it anew. A fourth makes the hospital's own model after a
study, where the site's file says so; nothing depends on it.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from medfl.deployment.addresses import LOOPBACK, loopback_socket, split
from medfl.deployment.hospital.children import Child, start_child
from medfl.deployment.hospital.homework import Homework
from medfl.deployment.hospital.monitoring import watched_site
from medfl.deployment.hospital.own_ledger import require_own_ledger
from medfl.deployment.hospital.participation import LEFT, LOCK, require_not_left
from medfl.deployment.hospital.private_files import FLOWER, require_private
from medfl.deployment.hospital.site_file import load_hospital, require_invited_name
from medfl.deployment.hospital.site_log import SiteLog
from medfl.deployment.hospital.way import LookAtWay, Way
from medfl.deployment.lock import LOOK_SECONDS, exclusive
from medfl.deployment.monitoring.hook import require_usable
from medfl.deployment.monitoring.watch import monitored
from medfl.deployment.parent import SECRET_BYTES
from medfl.deployment.processes import flower_environment, stop, stop_signals
from medfl.errors import ConfigError, FederationError
from medfl.protocol.keys import KEYS, SiteKeys

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.5

_NODE, _TASKS = "the connection to the server", "the runner of ClientApps"
_MODULES = {
    _NODE: "medfl.deployment.hospital.supernode",
    _TASKS: "medfl.deployment.hospital.task_processes",
}


def run_site(site_file: Path, *, server: str, authority: Path, look: LookAtWay) -> None:
    """Run a site until a signal comes; waits for a server that is not there yet.

    Args:
        site_file: The site's file.
        server: ``HOST:PORT`` of the coordinator's server.
        authority: Certificate of the coordinator's authority, as PEM.
        look: Goes the way to the server, while there is no connection.

    Raises:
        ConfigError: If the file breaks a rule, is no hospital's or names another one than was
            invited, if the site has no keys or no ledger or has left, if others can read its keys
            or databases or write its file, if its monitoring cannot begin, or if the server shows a
            certificate of another authority.
        LedgerError: If the ledger is damaged.
        FederationError: If the site runs already, or one of its processes ended by itself.
    """
    site_file, authority = site_file.resolve(), authority.resolve()
    site = load_hospital(site_file)
    if '"' in str(site_file) or "\\" in str(site_file):
        raise ConfigError(f"{site_file}: expected a path without quotes and backslashes.")
    require_not_left(site.state)
    require_private(site.state, site_file, authority)
    SiteKeys.read(site.state / KEYS)
    require_invited_name(site)
    require_own_ledger(site)
    require_usable(site.monitoring.hook, where=site_file)
    home = site.state / FLOWER
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(flower_environment(home=home))
    require_trusted(server, authority=authority)
    with (
        exclusive(site.state / LOCK, noun="a site", patience_seconds=LOOK_SECONDS),
        stop_signals() as stopped,
        closing(SiteLog(site.state, data=site.data)) as log,
    ):
        log.say(f"Site {site.name}; the whole log is in {log.path}.")
        homework = Homework(site_file=site_file, state=site.state, log=log)
        with (
            closing(homework),
            closing(Way(server, look=look, log=log, state=site.state)) as way,
            monitored(
                watched_site(site, connection=lambda: way.connection, authority=authority),
                settings=site.monitoring,
                folder=site.state,
                say=log.say,
            ),
            _children(
                log, site_file, server=server, authority=authority, notice=way.notice
            ) as children,
        ):
            while not stopped.wait(POLL_SECONDS):
                if (site.state / LEFT).exists():
                    break
                _require_alive(children, log)
                homework.look()
        log.say("Ended.")


def require_trusted(server: str, *, authority: Path) -> None:
    """Refuse a server with a certificate of another authority; one that is not there may come.

    It goes the way that the node will go: through the proxy that the environment names, if any.

    Args:
        server: ``HOST:PORT``.
        authority: The only authority that is trusted.

    Raises:
        ConfigError: If the certificate does not fit, the address is none, there is no authority, or
            a proxy forbids the way.
    """
    try:
        split(server)
    except ValueError:
        raise ConfigError(
            f"Expected the server as HOST:PORT, or [ADDRESS]:PORT for IPv6, found {server!r}."
        ) from None
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError):
        raise ConfigError(f"{authority}: expected a certificate as PEM, found none.") from None
    try:
        httpx.get(f"https://{server}/health", verify=context, timeout=CONNECT_SECONDS)
    except httpx.HTTPError as error:
        refusal = _refusal_in(error)
        if refusal is not None:
            raise ConfigError(
                f"{server}: expected a certificate of the authority in {authority}, found another "
                f"({refusal.verify_message})."
            ) from None
        # What a proxy answers, for example 407 or 403; with 5xx it cannot reach the server yet.
        if isinstance(error, httpx.ProxyError) and str(error).startswith("4"):
            raise ConfigError(
                f"{server}: expected a proxy that lets this site through, found {error}."
            ) from None
        # Not there yet: the node keeps trying.


def _refusal_in(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def _children(
    log: SiteLog,
    site_file: Path,
    *,
    server: str,
    authority: Path,
    notice: Callable[[str], None],
) -> Iterator[dict[str, Child]]:
    secret = secrets.token_bytes(SECRET_BYTES)
    children: dict[str, Child] = {}
    try:
        with loopback_socket() as between:
            descriptor, port = between.fileno(), between.getsockname()[1]
            node = [str(site_file), server, str(authority), str(descriptor)]
            process = start_child(_MODULES[_NODE], node, secret=secret, inherited=[descriptor])
        children[_NODE] = Child(process=process, log=log, notice=notice)
        process = start_child(_MODULES[_TASKS], [f"{LOOPBACK}:{port}"], secret=secret)
        children[_TASKS] = Child(process=process, log=log, notice=notice)
        yield children
    finally:
        # The runner of ClientApps first: it has nobody to report to without the other.
        for name in reversed(children):
            stop(children[name].process)
        for child in children.values():
            child.heard()


def _require_alive(children: dict[str, Child], log: SiteLog) -> None:
    for name, child in children.items():
        code = child.process.poll()
        if code is not None:
            child.heard()
            why = f" ({child.last_line})" if child.last_line else ""
            message = log.redacted(
                f"The site stopped: {name} ended with exit code {code}{why}; see {log.path}."
            )
            log.note(message)
            raise FederationError(message)
