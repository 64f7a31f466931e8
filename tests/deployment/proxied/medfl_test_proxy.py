"""A plug-in of proxy.py: it alone knows the coordinator's name, and notes what it is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from proxy.http.proxy import HttpProxyBasePlugin

COORDINATOR = "coordinator.medfl.test"


class Resolver(HttpProxyBasePlugin):  # type: ignore[misc]
    """Resolves the coordinator's name."""

    def resolve_dns(
        self,
        host: str,
        port: int,  # noqa: ARG002
    ) -> tuple[str | None, Any]:
        """The address of the coordinator; nobody else has one."""
        return ("127.0.0.1" if host == COORDINATOR else "127.0.0.9"), None

    def before_upstream_connection(self, request: Any) -> Any:
        """Note the request."""
        line = f"{request.method.decode()} {request.host.decode()}:{request.port}\n"
        with Path(os.environ["MEDFL_TEST_PROXY_LOG"]).open("a") as file:
            file.write(line)
        return request
