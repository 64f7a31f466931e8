"""`Page`: metrics and health over HTTP, for this machine only.

It listens on 127.0.0.1 whatever is asked: what a monitoring needs from elsewhere, an agent on this
machine fetches. It shows nothing of patients, takes no input but a path, and changes nothing.
"""

from __future__ import annotations

import json
import logging
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from medfl.deployment.addresses import LOOPBACK
from medfl.deployment.monitoring.metrics import Readings
from medfl.deployment.monitoring.report import Health
from medfl.errors import ConfigError

METRICS, HEALTH = "/metrics", "/health"

UNREADABLE = "unreadable"
"""Why health is failing where nobody can tell how it is."""

_REQUEST_SECONDS = 30
"""How long a client may take: who is silent holds a thread."""

_STATUS = {200: "200 OK", 404: "404 Not Found", 405: "405 Method Not Allowed"}
_UNAVAILABLE = "503 Service Unavailable"

logger = logging.getLogger(__name__)


class Page:
    """Serves one page until it is closed.

    Args:
        port: TCP port of this machine.
        readings: The metrics.
        health: Looks whether all is well.

    Raises:
        ConfigError: If another process listens there, or the port needs more rights.
    """

    def __init__(self, port: int, *, readings: Readings, health: Callable[[], Health]) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(readings)
        self._metrics = make_wsgi_app(registry)
        self._health = health
        try:
            self._server = _Server((LOOPBACK, port), _Request)
        except OSError as error:
            raise ConfigError(
                f"monitoring.port: expected a TCP port of {LOOPBACK} that is free, found {port}: "
                f"{error.strerror}"
            ) from None
        self._server.set_app(self._answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path, method = request["PATH_INFO"], request["REQUEST_METHOD"]
        if path not in (METRICS, HEALTH):
            return _text(start, _STATUS[404], f"{METRICS} {HEALTH}")
        if method not in ("GET", "HEAD"):
            return _text(start, _STATUS[405], "GET")
        try:
            if path == METRICS:
                answer: Iterable[bytes] = self._metrics(request, start)
                return answer
            health = self._health()
        except Exception as error:  # noqa: BLE001  the page stays up, and shows no traceback
            logger.warning("The page for monitoring could not be read: %s", type(error).__name__)
            health = Health.of(UNREADABLE)
        status = _STATUS[200] if health.status == "ok" else _UNAVAILABLE
        content = json.dumps(health.model_dump(mode="json"))
        return _text(start, status, content, kind="application/json")


def _text(
    start: Callable[..., Any], status: str, text: str, *, kind: str = "text/plain"
) -> Iterable[bytes]:
    content = f"{text}\n".encode()
    start(status, [("Content-Type", kind), ("Content-Length", str(len(content)))])
    return [content]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request, none of which keeps the process alive."""

    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Without the name of the address, which a machine without DNS takes seconds to look up."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


class _Request(WSGIRequestHandler):
    """A request that is not logged: a scrape every few seconds would fill the log."""

    timeout = _REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""
