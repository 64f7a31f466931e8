"""A server and three hospitals as real processes: they train as a simulation does, to the last bit,
they refuse strangers, and hospitals come, renew their keys and go while the server runs.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from medfl.config import load_site, load_study
from medfl.deployment.admission import read_bundle
from medfl.deployment.coordinator.deployed_study import run_deployed_study
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.thin_app import THIN_APP, ThinApp
from medfl.errors import FederationError
from medfl.protocol.keys import KEYS, PUBLIC, SiteKeys
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.site import round as site_round
from medfl.study.simulation import prepare_folder, simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("east", "north", "south")


def run_medfl(deployment: Any, *arguments: object) -> str:
    """What a medfl command prints."""
    command = [deployment.command, *map(str, arguments)]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def trained(deployment: Any, pretraining_study: str) -> Path:
    """The run folder of three rounds, by the commands that a coordinator uses."""
    study = deployment.study("three-rounds", rounds=3, timeout=120.0)
    synthetic = pretraining_study[pretraining_study.index("[synthetic]") :]
    study.write_text(study.read_text() + synthetic)
    printed = run_medfl(
        deployment, "pretrain", study, "-o", deployment.scratch / "start.safetensors"
    )
    (start,) = [line for line in printed.splitlines() if line.startswith("  start = ")]
    study.write_text(f"{study.read_text()}{start.strip()}\n")
    out: Path = deployment.scratch / "run"
    deployment.start("run", "server", "run", deployment.server.path, study, "--out", out)
    code = deployment.finished("run", seconds=240)
    assert code == 0, deployment.log("run").read_text()[-3000:]
    return out


def test_real_processes_train_to_the_model_of_a_simulation(
    trained: Path,
    deployment: Any,
    hospital_files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_hospital: Any,
) -> None:
    seeding = importlib.util.spec_from_file_location(
        "seeding", Path(__file__).parent / "seeded" / "sitecustomize.py"
    )
    assert seeding is not None and seeding.loader is not None
    module = importlib.util.module_from_spec(seeding)
    seeding.loader.exec_module(module)
    monkeypatch.setattr(site_round, "noise_source", module.seeded_noise)
    sites = [
        load_site(write_hospital(tmp_path, name=name, state=tmp_path / "state" / name))
        for name in SITES
    ]
    study = load_study(deployment.scratch / "three-rounds.toml")
    prepare_folder(tmp_path / "run", study=study, resume=False)
    simulate(study, sites, out=tmp_path / "run", engine="inprocess", progress=Silent())
    here = load_file(tmp_path / "run" / "checkpoints" / "final.safetensors")
    there = load_file(trained / "checkpoints" / "final.safetensors")
    start = load_file(trained / "checkpoints" / "initial.safetensors")
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert not all(torch.equal(start[name], there[name]) for name in start)
    pretrained = load_file(deployment.scratch / "start.safetensors")
    assert start.keys() == pretrained.keys()
    assert all(torch.equal(start[name], pretrained[name]) for name in start)


def test_every_ledger_agrees_with_the_server(trained: Path, deployment: Any) -> None:
    folder = RunFolder(trained)
    events = folder.events()
    privacy = {entry["site"]: entry for entry in json.loads((trained / "privacy.json").read_text())}
    assert sorted(privacy) == list(SITES)
    for name in SITES:
        run = deployment.run_of(name, study="three-rounds")
        assert (run.charges, run.steps, run.released) == (3, 3, 3)
        assert run.run == folder.run_id()
        assert sum(event.steps for event in events if event.site == name) == run.steps
        assert float(privacy[name]["epsilon_pld"]) == pytest.approx(run.epsilon, rel=1e-2)


def test_a_run_leaves_what_a_simulation_leaves(trained: Path) -> None:
    for name in ("summary.json", "federation.json", "sites.json", "plan.json", "environment.json"):
        assert json.loads((trained / name).read_text())
    assert (trained / "report.html").stat().st_size > 10_000
    assert RunFolder(trained).scores() == ()
    assert not (trained / "sites").exists()


def test_only_the_servers_machine_reaches_more_than_the_fleet(deployment: Any) -> None:
    context = ssl.create_default_context(cafile=str(deployment.server.authority))

    def status(path: str, *, source: str, method: str = "POST") -> int:
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            deployment.server.port,
            context=context,
            source_address=(source, 0),
            timeout=20,
        )
        headers = {"content-type": "application/protobuf"}
        try:
            connection.request(method, path, body=b"", headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    hospital, here = "127.0.0.2", "127.0.0.1"
    assert status("/health", source=hospital, method="GET") == 200
    # What has no signature of an admitted node is sent away by Flower itself.
    assert status("/v1/fleet/pull-messages", source=hospital) == 401
    for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task"):
        assert status(path, source=hospital) == 403
    assert status("/v1/control/list-nodes", source=here) == 403
    assert status("/v1/runtime/acquire-task", source=here) == 401


def test_a_site_that_was_not_admitted_cannot_join(
    deployment: Any, write_hospital: Any, tmp_path: Path
) -> None:
    deployment.sites["stranger"] = write_hospital(tmp_path, name="north", state=tmp_path / "state")
    deployment.start_site("stranger")
    assert deployment.finished("stranger", seconds=90) != 0
    assert "Failed to activate SuperNode" in deployment.log("stranger").read_text()
    assert deployment.online() == set(SITES)


def test_a_site_refuses_a_server_of_another_authority(deployment: Any, tmp_path: Path) -> None:
    other = ServerFolder.create(tmp_path / "other", host="127.0.0.1", port=8443)
    ended = subprocess.run(
        [
            *(deployment.command, "site", "start", str(deployment.sites["north"])),
            *("--server", deployment.server.local_address, "--ca", str(other.authority)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "expected a certificate of the authority" in ended.stderr


def test_sites_refuse_an_app_that_they_did_not_pin(deployment: Any, tmp_path: Path) -> None:
    before = {name: deployment.spent(name) for name in SITES}
    study = load_study(deployment.study("other-app", rounds=1, timeout=60.0))
    app = ThinApp(server=THIN_APP.server, client="os:getcwd")
    with pytest.raises(FederationError, match="east: node-error; north: node-error"):
        run_deployed_study(
            study,
            folder=deployment.server,
            out=tmp_path / "run",
            resume=False,
            progress=Silent(),
            app=app,
        )
    for name in SITES:
        assert "policy-app" in deployment.log(name).read_text()
        assert deployment.spent(name) == before[name]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process politely."""
    process.terminate()
    process.wait(timeout=60)


def test_a_hospital_comes_renews_and_goes_while_the_server_runs(
    deployment: Any, wait_for: Any
) -> None:
    place = deployment.server.path

    def run(*arguments: object) -> str:
        return run_medfl(deployment, *arguments)

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


def test_processes_that_are_told_to_end_leave_nothing_behind(deployment: Any) -> None:
    """The last test of this module, since it ends the deployment."""
    for process in [deployment.running[name] for name in ("east", "north", "server")]:
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.terminate()
        assert process.wait(timeout=30) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
