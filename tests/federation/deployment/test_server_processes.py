"""A real server and a real site: status, renewal, new keys and the end, while both run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.federation.deployment.admission import read_bundle
from medfl.federation.site_keys import KEYS, PUBLIC, SiteKeys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

MEDFL = Path(sys.executable).parent / "medfl"


def run(*arguments: object) -> str:
    """Run a medfl command to its end and return what it prints."""
    done = subprocess.run(
        [str(MEDFL), *map(str, arguments)], check=True, timeout=120, capture_output=True, text=True
    )
    return done.stdout


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process politely."""
    process.terminate()
    process.wait(timeout=60)


def test_a_hospital_comes_renews_and_goes_while_the_server_runs(
    deployment: Any, wait_for: Any
) -> None:
    place = deployment.server.path

    def connected() -> set[str]:
        found = json.loads(run("server", "status", place, "--json"))
        assert found["server"]["running"]
        return {site["name"] for site in found["sites"] if site["connected"]}

    assert connected() == {"east", "north", "south"}

    # New keys: the old node is shut out, and the site is back with the new ones.
    state = load_site(deployment.sites["north"]).state
    old = read_bundle(state / PUBLIC).site
    keys = SiteKeys.read(state / KEYS).rotate(state / KEYS)
    keys.write_public(state / PUBLIC, folder=state / KEYS)
    assert old.fingerprint in run("server", "admit", place, state / PUBLIC, "north")
    wait_for(lambda: "north" not in connected(), seconds=120, what="the old keys to be shut out")
    end(deployment.running["north"])
    deployment.start_site("north")
    wait_for(lambda: "north" in connected(), seconds=120, what="north to be back")

    # A revoked hospital is out at once, and stays out when it comes again.
    run("server", "revoke", place, "south", "--reason", "left the study")
    wait_for(lambda: connected() == {"east", "north"}, seconds=120, what="south to be gone")
    end(deployment.running["south"])
    deployment.start_site("south")
    assert deployment.running["south"].wait(timeout=120) != 0
    assert connected() == {"east", "north"}

    # The other hospitals notice nothing of a new certificate.
    shown = deployment.server.certificate.read_bytes()
    run("server", "renew", place)
    assert deployment.server.certificate.read_bytes() != shown
    end(deployment.running["server"])
    deployment.start_server()
    wait_for(lambda: connected() == {"east", "north"}, seconds=180, what="the others to be back")
    assert "revoked" in run("server", "status", place)
