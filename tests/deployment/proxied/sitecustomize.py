"""Python runs this first where the folder is on its path: no name can be resolved, only addresses.

Whoever asks for one is refused and noted. What tests do to every site they start comes with it.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

NAMES = "MEDFL_TEST_NAMES"
"""Environment variable: the file that gets every name that was asked for."""

_resolve = socket.getaddrinfo


def without_names(host: Any, *arguments: Any, **named: Any) -> Any:
    """Takes the place of `socket.getaddrinfo`."""
    try:
        if host is not None:
            ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        with Path(os.environ[NAMES]).open("a") as file:
            file.write(f"{host}\n")
        raise socket.gaierror(socket.EAI_NONAME, "No DNS here.") from None
    return _resolve(host, *arguments, **named)


if __name__ == "sitecustomize":
    socket.getaddrinfo = without_names
    others = Path(__file__).parents[1] / "seeded" / "sitecustomize.py"
    spec: Any = importlib.util.spec_from_file_location("sitecustomize", others)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
