"""What a coordinator's server shows and tells: its runs, its sites, and each failure once."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from medfl.cli import main
from medfl.cli.status_view import report, view
from medfl.config.monitoring import Monitoring
from medfl.deployment.coordinator import monitoring
from medfl.deployment.coordinator.monitoring import METRICS, ServerSight, events, look_at, samples
from medfl.deployment.coordinator.options import OPTIONS
from medfl.deployment.coordinator.private_files import require_private
from medfl.deployment.coordinator.report import ServerReport
from medfl.deployment.coordinator.run_book import RunRecord
from medfl.deployment.coordinator.server import serve
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.coordinator.status import status_of
from medfl.deployment.flower.control import Connection
from medfl.deployment.monitoring.report import schema_text
from medfl.deployment.processes import free_port
from medfl.errors import ConfigError, FederationError
from medfl.json_text import to_json
from medfl.protocol.keys import SiteKeys
from medfl.runs.attendance import AWAY, Absence, Attendance
from medfl.runs.files import WAITING
from medfl.runs.records import Round, SiteRound
from medfl.runs.waiting import Waiting
from medfl.server.run_folder import RunFolder

SCHEMA = Path(__file__).parents[2] / "site_configs" / "monitoring" / "server-status.schema.json"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
QUIET = Monitoring(budget_left=0.0, disk_gigabytes=0.0)


def site_round(outcome: Any, epsilon: float) -> SiteRound:
    code = "" if outcome == "admitted" else "silent"
    return SiteRound(outcome=outcome, code=code, epsilon=epsilon, budget=8.0, steps=1)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerFolder:
    """East is connected, north is not."""
    from medfl.deployment.admission import read_bundle

    folder = ServerFolder.create(tmp_path / "server", host="localhost", port=free_port())
    connections = {}
    for name in ("east", "north"):
        keys = SiteKeys.create(tmp_path / name)
        keys.write_public(tmp_path / f"{name}.pub", folder=tmp_path / name)
        bundle = read_bundle(tmp_path / f"{name}.pub")
        folder.admit(bundle, name=name)
        connections[bundle.site.node_key_pem] = Connection(connected=name == "east", since=None)
    monkeypatch.setattr(
        monitoring, "read_status", lambda folder: status_of(folder, connections=connections)
    )
    return folder


@pytest.fixture
def record(tmp_path: Path, federation: Any) -> RunRecord:
    """A run in its third round of nine, which north keeps waiting beyond the deadline."""
    out = tmp_path / "run"
    folder = RunFolder(out)
    folder.begin(run="first", study=federation.study(id="gliomas", training={"rounds": 9}))
    for number in (1, 2):
        sites = {
            "east": site_round("admitted", number * 1.25),
            "north": site_round("silent", 7.5),
        }
        folder.append_round(Round(round=number, seconds=10.0 * number, sites=sites))
    folder.append_attendance(
        Attendance(first_round=1, absent={"west": Absence(code=AWAY, seconds=30.0)})
    )
    now = datetime.now(UTC)
    folder.write(
        WAITING,
        Waiting(
            round=3,
            since=now - timedelta(minutes=2),
            deadline=now - timedelta(minutes=1),
            asked=("east", "north"),
            answered=("east",),
        ),
    )
    return RunRecord.begin("first", study="gliomas", out=out, detached=False)


def numbers(sight: ServerSight) -> dict[tuple[str, ...], float]:
    return {(each.metric.name, *each.labels): float(each.value) for each in samples(sight)}


def told(sight: ServerSight, **limits: Any) -> dict[str, Any]:
    found = events(sight, LONG_AGO, settings=QUIET.model_copy(update=limits))
    return {each.code: dict(each.details) for each in found.events}


def test_the_numbers_are_those_of_the_run_under_way(
    server: ServerFolder, record: RunRecord
) -> None:
    with server.book.following(record):
        found = numbers(look_at(server))
    assert {name for name, *_ in found} == {metric.name for metric in METRICS}
    run = ("gliomas", "first")
    assert found["medfl_server_healthy",] == 1.0
    assert found["medfl_server_sites_admitted",] == 2.0
    assert found["medfl_server_site_connected", "east"] == 1.0
    assert found["medfl_server_site_connected", "north"] == 0.0
    assert found["medfl_server_runs", "under-way"] == 1.0
    assert found[("medfl_server_rounds_total", *run)] == 2.0
    assert found[("medfl_server_rounds_planned", *run)] == 9.0
    assert found[("medfl_server_last_round_duration_seconds", *run)] == 20.0
    assert found[("medfl_server_late_sites", *run)] == 1.0
    assert found[("medfl_server_absent_sites", *run)] == 1.0
    assert found[("medfl_server_site_epsilon_spent", *run, "east")] == 2.5
    assert found[("medfl_server_site_epsilon_left", *run, "east")] == 5.5
    assert found[("medfl_server_site_rounds_missed_total", *run, "north")] == 2.0
    assert found["medfl_server_certificate_left_seconds",] == pytest.approx(730 * 86400, rel=0.01)


def test_nobody_is_late_once_nobody_follows_the_run(
    server: ServerFolder, record: RunRecord
) -> None:
    with server.book.following(record):
        pass
    sight = look_at(server)
    found = numbers(sight)
    assert found["medfl_server_late_sites", "gliomas", "first"] == 0.0
    assert found["medfl_server_rounds_total", "gliomas", "first"] == 2.0
    assert found["medfl_server_runs", "completed"] == 1.0
    assert told(sight) == {}


def test_each_kind_of_event_is_told_with_what_the_server_knows(
    server: ServerFolder, record: RunRecord
) -> None:
    run = {"study": "gliomas", "run": "first"}
    with server.book.following(record):
        found = told(look_at(server), budget_left=0.1, disk_gigabytes=1e6, certificate_days=800)
    assert found["site-late"] == {**run, "site": "north", "round": 3}
    assert found["site-absent"] == {**run, "site": "west", "code": AWAY}
    assert found["round-failed"] == {
        **run,
        "site": "north",
        "round": 2,
        "outcome": "silent",
        "code": "silent",
    }
    assert found["budget-low"] == {
        **run,
        "site": "north",
        "epsilon_spent": 7.5,
        "epsilon_left": 0.5,
        "epsilon_budget": 8.0,
    }
    assert found["certificate-expiring"]["certificate"] == "server"
    assert set(found) == {
        *("site-late", "site-absent", "round-failed", "budget-low"),
        *("certificate-expiring", "disk-low"),
    }


def test_the_same_moment_gives_the_same_keys_and_a_later_round_others(
    server: ServerFolder, record: RunRecord
) -> None:
    def keys() -> set[str]:
        return {each.key for each in events(look_at(server), LONG_AGO, settings=QUIET).events}

    with server.book.following(record):
        before = keys()
        assert keys() == before
        folder = RunFolder(record.out)
        sites = {"east": site_round("admitted", 3.0), "north": site_round("silent", 7.75)}
        folder.append_round(Round(round=3, seconds=1.0, sites=sites))
        folder.write(WAITING, WAITING.read(record.out).model_copy(update={"round": 4}))
        # Who is silent round after round was told; who is late in a new round was not.
        assert {key.partition("/")[0] for key in keys() - before} == {"site-late"}


def test_a_failed_run_is_told_unless_it_failed_before_anybody_looked(
    server: ServerFolder, record: RunRecord
) -> None:
    with pytest.raises(FederationError), server.book.following(record):
        raise FederationError(f"{record.out}: too few sites")
    sight = look_at(server)
    assert told(sight) == {"run-failed": {"study": "gliomas", "run": "first", "state": "failed"}}
    later = datetime.now(UTC) + timedelta(seconds=2)
    assert events(sight, later, settings=QUIET).events == ()


def test_a_run_whose_process_was_killed_is_told(server: ServerFolder, record: RunRecord) -> None:
    with server.book.following(record):
        content = (server.path / "records" / "first.json").read_bytes()
    (server.path / "records" / "first.json").write_bytes(content)
    assert told(look_at(server))["run-failed"]["state"] == "interrupted"


def test_a_run_that_has_no_folder_yet_is_left_out(server: ServerFolder, tmp_path: Path) -> None:
    record = RunRecord.begin("new", study="gliomas", out=tmp_path / "nothing", detached=True)
    with server.book.following(record):
        found = numbers(look_at(server))
    assert found["medfl_server_runs", "under-way"] == 1.0
    assert not [key for key in found if "new" in key]


# The status for programs


def test_programs_get_what_the_schema_says(server: ServerFolder, record: RunRecord) -> None:
    schema = json.loads(SCHEMA.read_text())
    for connections, run_dir in (({}, record.out), (None, None)):
        moment = view(
            status_of(server, connections=connections),
            run_dir=run_dir,
            under_way=True,
            disk_free_bytes=5,
        )
        found = json.loads(to_json(report(moment)))
        jsonschema.validate(found, schema)
        assert found["health"]["reasons"] == ([] if connections is not None else ["not-running"])
    sites = {"east": site_round("admitted", inf)}
    RunFolder(record.out).append_round(Round(round=3, seconds=1.0, sites=sites))
    moment = view(status_of(server, connections=None), run_dir=record.out, under_way=True)
    found = json.loads(to_json(report(moment)))
    assert found["run"]["sites"][0]["epsilon"] == "inf"
    jsonschema.validate(found, schema)


def test_the_schema_that_is_shipped_is_that_of_the_code() -> None:
    assert SCHEMA.read_text() == schema_text(ServerReport)


def test_health_is_an_exit_code(
    server: ServerFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["medfl", "server", "status", str(server.path), "--health"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().out) == (1, "failing not-running\n")


# The server's own file


def test_a_server_with_a_file_that_cannot_be_does_not_start(
    server: ServerFolder, tmp_path: Path
) -> None:
    def refusal(text: str, mode: int = 0o600) -> str:
        path = server.path / OPTIONS
        path.write_text(text)
        path.chmod(mode)
        with pytest.raises(ConfigError) as error:
            serve(server, on_ready=lambda: pytest.fail("It serves."))
        return str(error.value)

    assert "key monitoring.port: " in refusal("[monitoring]\nport = 99999\n")
    assert "no such file: /nothing" in refusal('[monitoring]\nhook = ["/nothing"]\n')
    assert "key watching: unknown key" in refusal("[watching]\n")
    assert f"{OPTIONS}: expected a file that only medfl's account can write" in refusal("", 0o666)
    require_private(ServerFolder.create(tmp_path / "other", host="localhost", port=8443))
