"""One of each kind of hostile server and hostile site, as real processes of one deployment.

A `sitecustomize` on the processes' path makes server and sites hostile in one study; see
`hostile/sitecustomize.py`. Every patient carries an identifier in eight places, which must reach
nothing that any process writes or sends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar

from medfl.config import load_site, load_study
from medfl.deployment.coordinator.deployed_study import run_deployed_study
from medfl.deployment.flower.control import Control
from medfl.deployment.thin_app import ThinApp
from medfl.errors import FederationError
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("east", "north", "south")
HOSTILE = Path(__file__).parent / "hostile"
SAID_BY_A_SITE = (b"MUELLER", b"\x1b[2J")


@pytest.fixture(scope="module", autouse=True)
def hostile_processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Let the deployment's processes run the hostile `sitecustomize` in place of the seeded one."""
    conftest = str(Path(__file__).with_name("conftest.py"))
    plugins = request.config.pluginmanager.get_plugins()
    (module,) = [plugin for plugin in plugins if getattr(plugin, "__file__", "") == conftest]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEEDED", HOSTILE)
        patch.setenv("MEDFL_TEST_HOSTILE", str(tmp_path_factory.mktemp("hostile")))
        yield


@pytest.fixture(scope="module")
def hospital_files(
    hospital_files: dict[str, Path], canary: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same hospitals, but every patient carries the identifier."""
    folder = tmp_path_factory.mktemp("planted")
    files = {}
    for name in SITES:
        root = load_site(hospital_files[name]).data.root
        planted = canary.plant(root, folder / name)
        files[name] = folder / f"{name}.toml"
        text, lines = re.subn(
            "^root = .*$", f'root = "{planted}"', hospital_files[name].read_text(), flags=re.M
        )
        assert lines == 1
        files[name].write_text(text)
    return files


def logs_of_site(deployment: Any, name: str) -> str:
    """Everything that a site's processes have written."""
    files = [deployment.log(name), *deployment.site(name).state.rglob("*.log")]
    return "".join(file.read_text(errors="replace") for file in files)


def run(deployment: Any, name: str, study: Path) -> tuple[int, str]:
    """Run a study by the coordinator's command: its exit code, and what it printed."""
    out = deployment.scratch / "runs" / name
    out.parent.mkdir(exist_ok=True)
    deployment.start(name, "server", "run", deployment.server.path, study, "--out", out)
    code = deployment.running[name].wait(timeout=600)
    return code, deployment.log(name).read_text()


def test_a_study_weaker_than_every_policy_gets_a_code_and_nothing_is_charged(
    deployment: Any,
) -> None:
    study = deployment.study("weak", rounds=2000, timeout=90.0)
    code, printed = run(deployment, "weak", study)
    assert code == 1
    assert "failed with exception" not in printed
    assert "policy-rounds; north: policy-rounds; south: policy-rounds" in " ".join(printed.split())
    for name in SITES:
        assert "Refused with code policy-rounds" in logs_of_site(deployment, name)
        assert deployment.spent(name).by_run == ()


def test_settings_of_a_run_are_refused_before_the_message_is_stored(
    deployment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_with_settings(self: Control, app: ThinApp) -> int:
        request = StartRunRequest(fab=Fab(hash_str=app.digest, content=app.content))
        request.override_config["site-file"].CopyFrom(Scalar(string="/etc/passwd"))
        return int(self._client.StartRun(request).run_id)

    monkeypatch.setattr(Control, "start", start_with_settings)
    study = load_study(deployment.study("settings", rounds=1, timeout=90.0))
    with pytest.raises(FederationError, match="east: node-error; north: node-error"):
        run_deployed_study(
            study,
            folder=deployment.server,
            out=tmp_path / "run",
            resume=False,
            progress=Silent(),
        )
    for name in SITES:
        assert "Refused with code policy-run-config" in logs_of_site(deployment, name)
        assert deployment.spent(name).by_run == ()


@pytest.fixture(scope="module")
def finished(deployment: Any) -> RunFolder:
    """Three rounds: in each of them one site at least is honest and honestly asked."""
    # Nobody waits so long: see `hostile/sitecustomize.py`.
    study = deployment.study("hostile", rounds=3, timeout=200.0, min_sites=1)
    code, printed = run(deployment, "hostile", study)
    assert code == 0, printed[-3000:]
    return RunFolder(deployment.scratch / "runs" / "hostile")


def test_every_hostile_act_ends_in_its_code_and_the_run_goes_on(finished: RunFolder) -> None:
    rounds = [
        {name: (site.outcome, site.code) for name, site in line.sites.items()}
        for line in finished.rounds()
    ]
    admitted = ("admitted", "")
    assert rounds == [
        {
            "east": ("rejected", "ledger-rolled-back"),
            "north": admitted,
            "south": ("rejected", "update-not-finite"),
        },
        {
            "east": ("refused", "message-norm"),
            "north": ("refused", "message-replayed"),
            "south": admitted,
        },
        {
            "east": admitted,
            "north": ("refused", "node-error"),
            "south": ("silent", "silent"),
        },
    ]


def test_sites_say_why_and_pay_for_what_they_computed_only(
    finished: RunFolder, deployment: Any
) -> None:
    assert "Refused with code message-norm" in logs_of_site(deployment, "east")
    assert "Refused with code message-replayed" in logs_of_site(deployment, "north")
    assert "cut off in the middle of an upload" in logs_of_site(deployment, "south")
    charges = {name: deployment.run_of(name, study="hostile").charges for name in SITES}
    assert charges == {"east": 2, "north": 2, "south": 3}
    privacy = json.loads((finished.path / "privacy.json").read_text())
    for entry in privacy:
        spent = deployment.run_of(entry["site"], study="hostile")
        # The server counts at least what was charged, also for what never arrived.
        assert float(entry["epsilon_pld"]) >= spent.epsilon - 0.01


def test_what_a_hostile_site_says_in_words_reaches_no_log_and_no_run_folder(
    finished: RunFolder, deployment: Any
) -> None:
    files = [
        deployment.log("hostile"),
        deployment.log("server"),
        *deployment.server.logs.rglob("*"),
        *finished.path.rglob("*"),
    ]
    read = [path for path in files if path.is_file()]
    assert len(read) > 10
    for path in read:
        content = path.read_bytes()
        assert not [text for text in SAID_BY_A_SITE if text in content], path


def test_an_identifier_in_eight_places_reaches_nothing_that_any_process_writes_or_sends(
    finished: RunFolder, deployment: Any, canary: Any
) -> None:
    assert (finished.path / "report.html").stat().st_size > 10_000
    databases = [
        path
        for path in deployment.server.path.rglob("*")
        if path.is_file() and path.read_bytes()[:15] == b"SQLite format 3"
    ]
    assert databases
    logs = sorted(deployment.scratch.glob("*.log"))
    assert len(logs) >= 6
    states = [deployment.site(name).state for name in SITES]
    assert canary.found_in(deployment.server.path, finished.path.parent, *logs, *states) == []
    # The patients that were trained on do carry it.
    assert canary.found_in(deployment.site("east").data.root) != []
