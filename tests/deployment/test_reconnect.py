"""A node behind a router waits for its server, and for no server with a wrong certificate."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection

from medfl.deployment.flower.reconnect import wait_behind_routers


@pytest.fixture(autouse=True)
def flower_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "make_simple_http_retry_invoker"
    monkeypatch.setattr(fleet_http_connection, name, getattr(fleet_http_connection, name))


@pytest.fixture
def router_without_server() -> Iterator[int]:
    """A port that takes every connection and ends it."""
    server = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    taking.join()


def invoker(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = fleet_http_connection.make_simple_http_retry_invoker()  # type: ignore[attr-defined]
    monkeypatch.setattr(made, "wait_function", lambda _: None)
    return made


def test_a_node_waits_while_a_router_cuts_its_connections_off(
    router_without_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def call() -> int:
        tries.append(1)
        if len(tries) % 3:
            httpx.get(f"https://127.0.0.1:{router_without_server}/health", timeout=30)
        return 7

    with pytest.raises(httpx.ConnectError, match="EOF"):  # Flower's own takes it for the end
        make_simple_http_retry_invoker().invoke(call)
    wait_behind_routers()
    tries.clear()
    assert invoker(monkeypatch).invoke(call) == 7
    assert len(tries) == 3


def test_a_wrong_certificate_is_still_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_behind_routers()
    tries: list[int] = []

    def call() -> None:
        tries.append(1)
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    with pytest.raises(httpx.ConnectError):
        invoker(monkeypatch).invoke(call)
    assert len(tries) == 1
