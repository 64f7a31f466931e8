"""A SuperNode in this process, which waits behind proxies and asks often.

Private names of Flower's: the command that is run in this process, the clock by which it asks for
messages, and the failures after which it tries again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace

import httpx
from flwr.supercore.retry import http_retry
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

ASK_SECONDS = 1.0
"""How often the node asks the server for messages."""


def wait_behind_proxies() -> None:
    """Let the node try again where a proxy says that the server is not there, as without one."""
    known = http_retry._RETRYABLE_TRANSPORT_ERRORS
    http_retry._RETRYABLE_TRANSPORT_ERRORS = (*known, httpx.ProxyError)


def ask_often() -> None:
    """Let the node ask for messages every second; Flower's three make up most of a small round."""
    start_client_internal.time = SimpleNamespace(  # type: ignore[attr-defined, assignment]
        sleep=lambda seconds: time.sleep(min(seconds, ASK_SECONDS))
    )


def run_node(arguments: Sequence[str]) -> None:
    """Run until a signal comes.

    Args:
        arguments: Of the command `flower-supernode`.
    """
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
