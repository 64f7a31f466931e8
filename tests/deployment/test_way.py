"""A site without a connection says why: at once, every few minutes, and no longer than it is so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from medfl.deployment.certificates import write_certificates
from medfl.deployment.hospital import way as way_module
from medfl.deployment.hospital.way import Way
from medfl.deployment.processes import free_port
from medfl.findings import Finding
from medfl.preflight.network import check_server

FAILED = "WARNING :   Connection attempt failed, retrying in 0.50 seconds"
CONNECTED = "INFO :      SuperNode ID: 12868766946316399390"
SERVER = "coordinator.medfl.test:8443"


class Said:
    """Stands for a site's log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def finding(value: str) -> Finding:
    return Finding(
        severity="error", patient="", name=SERVER, rule="a server", value=value, fix="Ask."
    )


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def watch(said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Starts a watch that looks all the time."""
    monkeypatch.setattr(way_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(way_module, "_POLL_SECONDS", 0.02)
    begun: list[Way] = []

    def begin(look: Callable[[], Sequence[Finding]]) -> Way:
        begun.append(Way(SERVER, look=look, log=said, state=tmp_path))  # type: ignore[arg-type]
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_reason_is_said_at_once_and_not_at_every_look(watch: Any, said: Said) -> None:
    looks: list[int] = []

    def look() -> list[Finding]:
        looks.append(1)
        return [finding("a refused connection")]

    watch(look)
    wait_for(lambda: len(looks) > 5)
    assert said.lines == [
        f"No connection to {SERVER}: expected a server, found a refused connection. Ask. "
        "The site keeps trying."
    ]


def test_it_is_said_again_after_some_minutes(
    watch: Any, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way_module, "REPEAT_SECONDS", 0.2)
    watch(lambda: [finding("a refused connection")])
    wait_for(lambda: len(said.lines) > 2)
    assert len(set(said.lines)) == 1


def test_another_reason_is_said_at_once(watch: Any, said: Said) -> None:
    found = [finding("a refused connection")]
    watch(lambda: list(found))
    wait_for(lambda: said.lines)
    found[:] = [finding("no answer within 10 s")]
    wait_for(lambda: len(said.lines) == 2)
    assert "no answer" in said.lines[1]


def test_a_connection_silences_it_until_it_is_lost_again(watch: Any, said: Said) -> None:
    way = watch(lambda: [finding("a refused connection")])
    wait_for(lambda: said.lines)
    way.notice(CONNECTED)
    time.sleep(0.2)
    assert len(said.lines) == 1
    way.notice(FAILED)
    wait_for(lambda: len(said.lines) == 2)


def test_a_server_that_answers_and_takes_no_hospital_is_told(watch: Any, said: Said) -> None:
    way = watch(list)
    time.sleep(0.2)
    assert said.lines == []  # nothing has failed so far
    way.notice(FAILED)
    wait_for(lambda: said.lines)
    assert "takes no hospitals yet" in said.lines[0]


@pytest.mark.parametrize(
    ("host", "proxy", "reason"),
    [
        ("127.0.0.1", "", "found a refused connection"),
        ("nowhere.invalid", "", "expected an address of nowhere.invalid (DNS)"),
        ("coordinator.medfl.test", "http://me:secret@127.0.0.1:{port}", "a refused connection"),
    ],
    ids=["a dead port", "a wrong name", "a dead proxy"],
)
def test_the_way_is_worded_as_by_the_check(
    host: str, proxy: str, reason: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way_module, "_POLL_SECONDS", 0.02)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
        if proxy:
            monkeypatch.setenv(name, proxy.format(port=free_port()))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    authority = tmp_path / "ca.crt"
    write_certificates(
        host=host,
        authority=authority,
        server=tmp_path / "server.crt",
        authority_key=tmp_path / "ca.key",
        server_key=tmp_path / "server.key",
    )
    server = f"{host}:{free_port()}"
    look = lambda: check_server(server, ca=authority)  # noqa: E731
    with closing(Way(server, look=look, log=said, state=tmp_path)):  # type: ignore[arg-type]
        wait_for(lambda: said.lines)
    (line,) = said.lines
    assert reason in line
    assert "secret" not in line
    assert ("through the proxy 127.0.0.1" in line) == bool(proxy)
