"""What a deployed server refuses: studies for open data, and sites that it did not admit."""

from __future__ import annotations

import socketserver
import ssl
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medfl.deployment import certificates
from medfl.deployment.coordinator.deployed_study import check_deployable
from medfl.deployment.coordinator.job import ExpectedSite, Job, read_job
from medfl.deployment.coordinator.server_folder import FOLDER_VARIABLE, ServerFolder
from medfl.deployment.hospital.site_file import load_hospital
from medfl.deployment.hospital.site_node import require_trusted
from medfl.deployment.lock import exclusive
from medfl.errors import ConfigError, FederationError, MessageError, QuorumError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import SiteKeys
from medfl.server.progress import Silent
from medfl.server.run import Run
from medfl.server.run_folder import RunFolder
from medfl.server.server_app import make_server_app
from medfl.site.state import hospital_state
from medfl.study.in_process_grid import run_in_process
from medfl.study.pretraining import initial_weights
from medfl.study.simulation import in_process_grid, prepare_folder

SECRET: dict[str, Any] = {"privacy": {"noise": "operating-system"}}
ALL = {"east", "north", "south"}


@pytest.mark.parametrize(
    ("changes", "sites", "rule"),
    [
        ({"evaluation": {"baselines": ["initial-only"]}}, ALL, "baselines"),
        ({"privacy": {"noise": "seeded"}}, ALL, "noise"),
        ({}, {"east"}, "min_sites"),
        ({"overlap": [{"sites": ["east", "west"]}]}, ALL, "west"),
    ],
    ids=["baselines", "seeded noise", "too few sites", "an overlap with a stranger"],
)
def test_a_study_that_no_hospital_may_join_is_refused(
    changes: dict[str, Any], sites: set[str], rule: str, federation: Any
) -> None:
    check_deployable(federation.study(**SECRET), sites=ALL)
    with pytest.raises(ConfigError, match=rule):
        check_deployable(federation.study(**{**SECRET, **changes}), sites=sites)


def test_open_data_cannot_be_deployed(hospital_files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="purpose = 'hospital'"):
        load_hospital(hospital_files["north"])


def run_with(federation: Any, changes: dict[str, ExpectedSite]) -> RunFolder:
    """Two hospitals, nodes 2 and 3, meet a server that expects them except for `changes`."""
    sites = [federation.hospital(name) for name in ("east", "south")]
    study = federation.study(**SECRET)
    out = federation.scratch / "run"
    expected = {
        site.name: ExpectedSite(node=number, event_key=SiteKeys.read(site.state / "keys").event_key)
        for number, site in enumerate(sites, start=2)
    }
    job = Job(run="first", study=study, out=out, sites={**expected, **changes})
    prepare_folder(out, study=study, resume=False)
    folder = RunFolder(out)
    run = Run(
        study=study,
        folder=folder,
        run=folder.run_id(),
        private=True,
        variant="federated",
        start=lambda: initial_weights(study, threads=1, advance=lambda *_: None),
        progress=Silent(),
        welcome=job.welcome,
    )
    grid = in_process_grid([hospital_state(site) for site in sites], progress=Silent())
    run_in_process(make_server_app(run), grid)
    return folder


def test_sites_with_the_admitted_keys_take_part(federation: Any) -> None:
    assert len(run_with(federation, {}).rounds()) == 2


@pytest.mark.parametrize(
    "wrong",
    [ExpectedSite(node=2, event_key="ab" * 32), ExpectedSite(node=3, event_key="")],
    ids=["another event key", "another node"],
)
def test_a_site_with_other_keys_than_admitted_is_left_out(
    wrong: ExpectedSite, federation: Any
) -> None:
    with pytest.raises(QuorumError, match="site 1: declaration-unknown-site"):
        run_with(federation, {"east": wrong})


@pytest.fixture
def mechanism() -> Mechanism:
    return Mechanism(
        sampling_prob=0.5,
        noise_multiplier=2.0,
        clip_norm=1.0,
        clipping="normalised",
        local_steps=1,
        declared_patients=20,
    )


def test_a_site_that_changed_its_keys_is_followed(
    voice_of: Any, mechanism: Mechanism, federation: Any, tmp_path: Path
) -> None:
    voice = voice_of("north", mechanism=mechanism)
    expected = ExpectedSite(node=5, event_key=voice.keys.event_key)
    job = Job(
        run="first", study=federation.study(**SECRET), out=tmp_path, sites={"north": expected}
    )
    job.welcome(voice.declaration(), 5)
    keys = voice.keys.rotate(tmp_path)
    job.welcome(replace(voice, keys=keys).declaration(), 5)
    with pytest.raises(MessageError) as refused:
        job.welcome(replace(voice, keys=SiteKeys.create(tmp_path / "new")).declaration(), 5)
    assert refused.value.code == "declaration-unknown-site"


def test_a_site_with_open_data_is_refused(
    voice_of: Any, mechanism: Mechanism, federation: Any, tmp_path: Path
) -> None:
    voice = voice_of("north", mechanism=mechanism)
    expected = ExpectedSite(node=5, event_key=voice.keys.event_key)
    job = Job(
        run="first", study=federation.study(**SECRET), out=tmp_path, sites={"north": expected}
    )
    with pytest.raises(MessageError) as refused:
        job.welcome(voice.declaration(purpose="open-data"), 5)
    assert refused.value.code == "declaration-open-data"


def test_a_run_that_nobody_left_a_job_for_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr("medfl.deployment.coordinator.job.WAIT_SECONDS", 0.2)
    with pytest.raises(FederationError, match="Expected a job for run 7"):
        read_job(7)


def test_two_processes_do_not_work_on_the_same_thing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        exclusive(path, noun="a thing"),
        pytest.raises(FederationError, match="expected a thing that no other process"),
        exclusive(path, noun="a thing"),
    ):
        pass
    with exclusive(path, noun="a thing"):
        pass


class Quiet(socketserver.TCPServer):
    """Says nothing of clients that hang up, as those do that refuse its certificate."""

    def handle_error(self, *_: Any) -> None:
        pass


def test_a_site_says_in_one_sentence_that_the_servers_certificate_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "SERVER_DAYS", -0.01)
    folder = ServerFolder.create(tmp_path / "server", host="localhost", port=8443)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.certificate, folder.certificate_key)
    server = Quiet(("127.0.0.1", 0), socketserver.BaseRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ConfigError, match=r"found another \(certificate has expired\)\.$"):
            require_trusted(f"127.0.0.1:{server.server_address[1]}", authority=folder.authority)
    finally:
        server.shutdown()
        server.server_close()
