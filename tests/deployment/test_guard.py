"""Hospitals see the fleet path and the health check, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from medfl.deployment.flower.guard import CONTROL_HEADER, OPEN_PATH, Guard

SECRET = "the secret of the control path"  # noqa: S105
HERE, HOSPITAL = "127.0.0.1", "203.0.113.7"


def status(
    path: str,
    *,
    client: tuple[str, int] | None,
    kind: str = "http",
    secret: str | None = None,
    is_open: bool = True,
) -> Any:
    """What is answered: 200 by the application behind the guard."""
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"status": 200})

    async def receive() -> Any:
        raise AssertionError("nothing of a refused request is read")

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(application, control_secret=SECRET)
    given = [(CONTROL_HEADER.encode(), SECRET.encode())]
    opening = {"type": "http", "path": OPEN_PATH, "client": (HERE, 1), "headers": given}
    if is_open:
        asyncio.run(guard(opening, receive, send))
        assert sent[0]["status"] == 204
        sent.clear()
    headers = [] if secret is None else [(CONTROL_HEADER.encode(), secret.encode())]
    scope = {"type": kind, "path": path, "client": client, "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return sent[0].get("status", sent[0].get("type"))


@pytest.mark.parametrize("path", ["/health", "/v1/fleet/activate-node"])
@pytest.mark.parametrize("address", [HERE, HOSPITAL])
def test_everybody_may_see_the_fleet_and_the_health(path: str, address: str) -> None:
    assert status(path, client=(address, 1)) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        OPEN_PATH,
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/",
        "/health/..",
        "/v1/fleet",
        "//v1/fleet/x",
        "/V1/fleet/x",
    ],
)
@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("client", [(HOSPITAL, 1), ("127.0.0.2", 1), ("", 1), None])
def test_a_hospital_sees_nothing_else(
    path: str, secret: str | None, client: tuple[str, int] | None
) -> None:
    assert status(path, client=client, secret=secret) == 403


@pytest.mark.parametrize("secret", [None, "", "another", SECRET + "x"])
def test_the_control_path_wants_its_secret_from_this_machine_too(secret: str | None) -> None:
    assert status("/v1/control/start-run", client=(HERE, 1), secret=secret) == 403


@pytest.mark.parametrize("address", [HERE, "::1"])
def test_the_servers_own_processes_see_what_they_need(address: str) -> None:
    assert status("/v1/control/start-run", client=(address, 1), secret=SECRET) == 200
    assert status("/v1/runtime/acquire-task", client=(address, 1)) == 200
    assert status("/docs", client=(address, 1)) == 403


def test_a_websocket_is_closed_and_the_life_of_the_server_goes_through() -> None:
    closed = status("/v1/fleet/x", client=(HERE, 1), kind="websocket")
    assert closed == "websocket.close"
    assert status("", client=None, kind="lifespan") == 200


def test_a_node_is_told_to_come_later_until_the_sites_are_registered() -> None:
    assert status("/v1/fleet/activate-node", client=(HOSPITAL, 1), is_open=False) == 503
    assert status("/health", client=(HOSPITAL, 1), is_open=False) == 200
