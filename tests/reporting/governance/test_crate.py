"""The run folder as an RO-Crate: made offline, and without what is not to be handed on."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocrate.rocrate import ROCrate

from medfl.errors import ReportError
from medfl.reporting.governance.crate import FILE, write_crate

Builder = Callable[..., Path]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("expected no connection")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def crate(deployed_run: Builder, no_network: None) -> Path:
    """A folder with ledgers and keys of sites, as a simulation leaves it."""
    folder = deployed_run()
    for name in ("keys/event.json", "ledger/ledger.sqlite"):
        secret = folder / "sites" / "North" / name
        secret.parent.mkdir(parents=True)
        secret.write_text("a secret")
    return write_crate(folder)


def entities(path: Path) -> dict[str, Any]:
    return {one["@id"]: one for one in json.loads(path.read_text())["@graph"]}


def test_software_inputs_and_outputs_are_named(crate: Path) -> None:
    found = entities(crate)
    assert crate.name == FILE
    assert found["./"]["conformsTo"] == {"@id": "https://w3id.org/ro/wfrun/process/0.6"}
    assert found["./"]["license"].startswith("To be completed")
    action = found["#run"]
    assert (action["@type"], action["instrument"]) == ("CreateAction", {"@id": "#medfl"})
    assert action["description"].startswith("medfl server run")
    assert {"@id": "study.json"} in action["object"]
    assert {"@id": "privacy.json"} in action["result"]
    assert found["#medfl"]["softwareVersion"] == "0.2.0"
    assert found["#opacus"]["softwareVersion"] == "1.6.0"


def test_what_is_not_to_be_handed_on_is_not_listed(crate: Path) -> None:
    files = {name for name, one in entities(crate).items() if one["@type"] == "File"}
    assert {"study.json", "rounds.jsonl", "federation_ledger.jsonl"} <= files
    assert not any(name.startswith(("sites/", "documents")) for name in files)
    assert all((crate.parent / name).is_file() for name in files)
    assert "secret" not in crate.read_text()
    assert str(crate.parent) not in crate.read_text()


def test_it_is_read_by_others_and_made_the_same_twice(crate: Path) -> None:
    first = crate.read_bytes()
    assert ROCrate(crate.parent).get("#run").type == "CreateAction"
    assert write_crate(crate.parent).read_bytes() == first


def test_a_missing_package_is_named(deployed_run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = deployed_run()
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    with pytest.raises(ReportError, match="pip install rocrate"):
        write_crate(folder)
    assert not (folder / FILE).exists()
