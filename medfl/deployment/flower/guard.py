"""What of a SuperLink can be seen from where.

Flower 1.41 serves hospitals and administrators on one port, and its control path asks nobody who
they are. Hospitals get the fleet path, where nodes authenticate, and the health check; the server's
own processes on this machine get the rest; and the control path also wants a secret that only the
owner of the server's folder can read, since other users and proxies may be on this machine too.

A node that Flower does not know gives up for good. So the fleet path says "later" until the server
has registered the admitted sites and opened it.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

CONTROL_HEADER = "x-medfl-control"
OPEN_PATH = "/v1/control/open-fleet"
"""A request to this path opens the fleet path."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_HERE = frozenset({"127.0.0.1", "::1"})
_FLEET = "/v1/fleet/"
_HEALTH = "/health"
_RUNTIME = "/v1/runtime/"
_CONTROL = "/v1/control/"


class Guard:
    """An ASGI application in front of another one.

    Args:
        application: What is guarded.
        control_secret: What a request to the control path has to bring in `CONTROL_HEADER`.
    """

    def __init__(self, application: Application, *, control_secret: str) -> None:
        self._application = application
        self._secret = control_secret.encode()
        self._is_open = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403; 503 while the fleet is not open."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path: str = scope["path"]
        if not self._permits(path, scope):
            await _answer(send, 403)
        elif path == OPEN_PATH:
            self._is_open = True
            await _answer(send, 204)
        elif path.startswith(_FLEET) and not self._is_open:
            await _answer(send, 503)
        else:
            await self._application(scope, receive, send)

    def _permits(self, path: str, scope: Message) -> bool:
        if path == _HEALTH or path.startswith(_FLEET):
            return True
        client = scope.get("client") or ("",)
        if client[0] not in _HERE:
            return False
        if path.startswith(_CONTROL):
            given = dict(scope["headers"]).get(CONTROL_HEADER.encode(), b"")
            return hmac.compare_digest(given, self._secret)
        return path.startswith(_RUNTIME)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})
