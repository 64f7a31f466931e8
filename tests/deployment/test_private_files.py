"""Nothing starts while its secrets, its ledger, its witness or its policy are open to others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.deployment.certificates import read_certificate
from medfl.deployment.coordinator.private_files import require_private as require_private_server
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.hospital.private_files import require_private
from medfl.deployment.hospital.site_node import run_site
from medfl.errors import ConfigError, MedflError
from medfl.privacy.ledger.witness_place import witness_folder
from medfl.site.audit_log import AuditLog
from medfl.site.state import hospital_state

MEDFL = Path(sys.executable).parent / "medfl"


@pytest.fixture
def file(write_hospital: Any, tmp_path: Path) -> Path:
    """The file of a hospital with keys, a ledger and a log."""
    path: Path = write_hospital(tmp_path, name="north", state=tmp_path / "state")
    AuditLog(tmp_path / "state").note("pause")
    assert hospital_state(load_site(path)).outbox
    return path


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", host="localhost", port=8443)


def opened(path: Path) -> None:
    """Let everybody read."""
    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))


def given_away(path: Path) -> None:
    """Let it belong to somebody else."""
    os.chown(path, 65534, -1)


OPENINGS = [
    pytest.param(opened, id="open"),
    pytest.param(
        given_away,
        id="of another account",
        marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away"),
    ),
]
OF_A_SITE = (
    *("", "keys", "keys/event.json", "keys/node", "site.key", "outbox", "cache"),
    *("ledger", "ledger/ledger.sqlite", "ledger/head.json"),
    *("audit-log", "audit-log/log.sqlite", "audit-log/head.json"),
)


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("name", OF_A_SITE)
def test_a_site_with_something_open_does_not_start(
    name: str, opening: Callable[[Path], None], file: Path, server: ServerFolder
) -> None:
    state = load_site(file).state
    require_private(state, file, server.authority)
    opening(state / name)
    with pytest.raises(ConfigError, match=r"found (mode 0|owner nobody)") as caught:
        run_site(file, server="localhost:8443", authority=server.authority, look=lambda: ())
    assert str(state / name) in str(caught.value)


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("name", ["", "witness.key", "witness.lock", "*.json"])
def test_a_site_whose_witness_is_open_does_not_start(
    name: str, opening: Callable[[Path], None], file: Path, server: ServerFolder
) -> None:
    (path,) = witness_folder().glob(name) if name else (witness_folder(),)
    opening(path)
    with pytest.raises(MedflError, match=r"found (mode 0|owner nobody)"):
        run_site(file, server="localhost:8443", authority=server.authority, look=lambda: ())


@pytest.mark.parametrize("which", ["the site's file", "the authority"])
def test_a_site_does_not_start_where_others_decide_over_it(
    which: str, file: Path, server: ServerFolder
) -> None:
    path = file if which == "the site's file" else server.authority
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="only medfl's account can write"):
        run_site(file, server="localhost:8443", authority=server.authority, look=lambda: ())


def test_the_command_ends_with_one_sentence(file: Path, server: ServerFolder) -> None:
    node = load_site(file).state / "keys" / "node"
    node.chmod(0o644)
    ended = subprocess.run(
        [
            *(str(MEDFL), "site", "start", str(file), "--server", "localhost:1"),
            *("--ca", str(server.authority)),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"error: {node}: expected a file for medfl's account only (mode 0600)" in ended.stderr
    assert f"found mode 0644. chmod 600 {node}" in ended.stderr


OF_A_SERVER = (
    *("", "state", "jobs", "logs", "flower"),
    *("superexec.secret", "control.secret", "ca.key", "server.key", "sites.json"),
)


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("name", OF_A_SERVER)
def test_a_server_with_something_open_does_not_start(
    name: str, opening: Callable[[Path], None], server: ServerFolder
) -> None:
    server.invite("north")
    require_private_server(server)
    opening(server.path / name)
    with pytest.raises(ConfigError, match=r"found (mode 0|owner nobody)") as caught:
        require_private_server(server)
    assert str(server.path / name) in str(caught.value)


def test_a_server_insists_on_it_before_it_listens(server: ServerFolder) -> None:
    server.path.joinpath("control.secret").chmod(0o644)
    ended = subprocess.run(
        [str(MEDFL), "server", "start", str(server.path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert "control.secret: expected a file for medfl's account only" in ended.stderr


def test_secrets_that_others_can_read_are_not_read(server: ServerFolder) -> None:
    for name, read in (
        ("control.secret", lambda: server.control_secret),
        ("server.key", lambda: read_certificate(server.certificate, key=server.certificate_key)),
        ("ca.key", server.renew_certificate),
    ):
        path = server.path / name
        path.chmod(0o640)
        with pytest.raises(ConfigError, match=rf"{name}: .* found mode 0640"):
            read()
        path.chmod(0o600)
