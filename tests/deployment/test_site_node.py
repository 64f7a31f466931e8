"""What a site's node is started with, and which servers and proxies it trusts beforehand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.supercore.retry import http_retry
from flwr.supercore.retry.http_retry import make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli.flower_supernode import _parse_supernode_lifespan_config

from medfl.deployment.certificates import write_certificates
from medfl.deployment.flower.node import (
    ASK_SECONDS,
    ask_often,
    stay_connected,
    wait_behind_proxies,
)
from medfl.deployment.hospital import site_node
from medfl.deployment.hospital.children import Child
from medfl.deployment.hospital.site_file import load_hospital
from medfl.deployment.hospital.site_log import SiteLog
from medfl.deployment.hospital.site_node import require_trusted
from medfl.deployment.hospital.supernode import arguments
from medfl.deployment.parent import SECRET_BYTES, as_file
from medfl.errors import ConfigError, FederationError


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A coordinator's ca.crt."""
    write_certificates(
        host="localhost",
        authority=tmp_path / "ca.crt",
        server=tmp_path / "server.crt",
        authority_key=tmp_path / "ca.key",
        server_key=tmp_path / "server.key",
    )
    return tmp_path / "ca.crt"


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A proxy that gives everybody the same answer; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(timeout=20)


def test_the_node_wants_a_secret_for_its_tasks_and_takes_no_app_of_its_own_choice(
    write_hospital: Any, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_hospital(tmp_path, name="north", state=tmp_path / "state")
    secret = os.urandom(SECRET_BYTES)
    given = arguments(file, server="localhost:8443", authority=authority, secret=as_file(secret))
    monkeypatch.setattr(sys, "argv", ["flower-supernode", *given])
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    config = _parse_supernode_lifespan_config()
    assert config.isolation == "process"
    assert config.superexec_auth_secret == secret
    assert secret.hex() not in " ".join(given)
    assert "--port" not in given  # it listens on a socket that is bound already
    assert config.authentication_keys is not None
    assert not config.insecure
    assert not config.runtime_dependency_install
    assert config.node_config == {"site-file": str(file)}


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden"])
def test_a_proxy_that_forbids_the_way_is_told_at_once(
    status: str, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=status):
            require_trusted("coordinator.medfl.test:8443", authority=authority)


def test_a_server_that_its_proxy_cannot_reach_yet_may_come(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n") as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        require_trusted("coordinator.medfl.test:8443", authority=authority)


@pytest.mark.parametrize(
    "address", ["localhost", ":8443", "localhost:99999", "[::1:8443", "a/b:8443"]
)
def test_what_is_no_address_is_refused(address: str, authority: Path) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        require_trusted(address, authority=authority)


def test_a_file_that_is_no_authority_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("none")
    with pytest.raises(ConfigError, match="certificate as PEM"):
        require_trusted("localhost:8443", authority=tmp_path / "ca.crt")


def test_a_node_tries_again_where_a_proxy_says_that_the_server_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = http_retry._RETRYABLE_TRANSPORT_ERRORS
    monkeypatch.setattr(http_retry, "_RETRYABLE_TRANSPORT_ERRORS", known)
    tries: list[int] = []

    def call() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise httpx.ProxyError("502 Bad Gateway")
        return 7

    with pytest.raises(httpx.ProxyError):
        make_simple_http_retry_invoker().invoke(call)
    wait_behind_proxies()
    invoker = make_simple_http_retry_invoker()
    monkeypatch.setattr(invoker, "wait_function", lambda _: None)
    assert invoker.invoke(call) == 7


def test_a_node_asks_for_messages_every_second_and_not_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Flower's own module looks up its clock by this name.
    assert start_client_internal.time is time  # type: ignore[attr-defined]
    monkeypatch.setattr(start_client_internal, "time", time)
    slept: list[float] = []
    ask_often()
    monkeypatch.setattr(time, "sleep", slept.append)
    for seconds in (3, 0.5):
        start_client_internal.time.sleep(seconds)  # type: ignore[attr-defined]
    assert slept == [ASK_SECONDS, 0.5]


def test_a_node_says_again_that_it_is_there_after_any_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sender = fleet_http_connection.HeartbeatSender  # type: ignore[attr-defined]
    monkeypatch.setattr(fleet_http_connection, "HeartbeatSender", sender)
    said = threading.Event()
    failures = [RuntimeError("not recognized"), ValueError("no protobuf\nmore of it")]

    def say() -> bool:
        if failures:
            raise failures.pop(0)
        said.set()
        return True

    stay_connected()
    heart = fleet_http_connection.HeartbeatSender(say)  # type: ignore[attr-defined]
    heart.start()
    assert said.wait(timeout=60)
    assert heart.is_running
    heart.stop()
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert ": not recognized" in told.getMessage()


def test_whoever_ends_by_itself_is_named_with_what_it_said_last(
    write_hospital: Any, tmp_path: Path
) -> None:
    """Where the log is lost, as a rehearsal's, this is all that is left."""
    site = load_hospital(write_hospital(tmp_path, name="north", state=tmp_path / "state"))
    site.state.mkdir(exist_ok=True)
    patient = next(path.name for path in sorted(site.data.root.iterdir()) if path.is_dir())
    said = f"print('INFO : a start', flush=True); raise OSError('{patient} has too long a path')"
    with closing(SiteLog(site.state, data=site.data)) as log:
        child = Child(
            process=subprocess.Popen(
                [sys.executable, "-c", said], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ),
            log=log,
        )
        child.process.wait(timeout=60)
        with pytest.raises(FederationError) as error:
            site_node._require_alive({"the runner of ClientApps": child}, log)
    assert str(error.value) == (
        "The site stopped: the runner of ClientApps ended with exit code 1 (OSError: "
        f"[patient] has too long a path); see {log.path}."
    )
    assert str(error.value) in log.path.read_text()
