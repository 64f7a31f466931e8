"""What a server's processes are started with, read by Flower's own parser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from flwr.superlink.cli.flower_superlink import _parse_superlink_lifespan_config

from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.coordinator.superlink import arguments
from medfl.deployment.processes import flower_environment


def test_the_superlink_authenticates_nodes_and_hands_its_tasks_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ServerFolder.create(tmp_path / "server", host="localhost", port=8443)
    monkeypatch.setattr(sys, "argv", ["flower-superlink", *arguments(folder)])
    config = _parse_superlink_lifespan_config()
    assert (config.host, config.port) == ("127.0.0.1", 8443)
    assert config.enable_supernode_auth
    assert not config.insecure
    assert config.certificates is not None
    assert config.isolation == "process"
    assert config.superexec_auth_secret == folder.superexec_secret.read_bytes()
    assert config.database == str(folder.database)
    assert not config.runtime_dependency_install
    assert not config.simulation


def test_nothing_calls_home_and_this_machine_needs_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "intranet")
    variables = flower_environment(home=tmp_path)
    assert variables["FLWR_HOME"] == str(tmp_path)
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert {"intranet", "127.0.0.1", "::1", "localhost"} <= set(variables["NO_PROXY"].split(","))
    assert variables["PATH"].split(":")[0] == str(Path(sys.executable).parent)
