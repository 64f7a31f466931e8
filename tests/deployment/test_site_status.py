"""What a hospital's site shows and tells: its budget and its connection, and no patient."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from medfl.cli import main
from medfl.config import SiteConfig, load_site
from medfl.deployment.certificates import write_certificates
from medfl.deployment.hospital.connection import (
    CONNECTION,
    Connection,
    forget_connection,
    note_connection,
    read_connection,
)
from medfl.deployment.hospital.monitoring import METRICS, events, samples
from medfl.deployment.hospital.participation import LOCK, Departure, pause
from medfl.deployment.hospital.status import SiteStatus, read_status
from medfl.deployment.lock import exclusive
from medfl.deployment.monitoring.report import schema_text
from medfl.privacy.ledger import summary
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.terms import Agreement
from medfl.privacy.mechanism import Mechanism
from medfl.site.audit_log import AuditLog
from medfl.site.state import hospital_state

SCHEMA = Path(__file__).parents[2] / "site_configs" / "monitoring" / "site-status.schema.json"
MECHANISM = Mechanism(
    sampling_prob=0.5,
    noise_multiplier=1.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=1,
    declared_patients=5,
)
HERE = Connection(connected=True, since=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def medfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line: its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        seen = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, seen.out, seen.err

    return run


@pytest.fixture
def file(write_hospital: Any, tmp_path: Path) -> Path:
    """The file of a hospital with keys and a ledger."""
    path: Path = write_hospital(tmp_path, name="north", state=tmp_path / "state")
    return path


@pytest.fixture
def site(file: Path) -> SiteConfig:
    return load_site(file)


@pytest.fixture
def spent(site: SiteConfig) -> Any:
    """Two runs of one study, and what the ledger itself counts of them."""
    with hospital_state(site).open_ledger() as ledger:
        for run, rounds in (("first", (1, 2, 2)), ("second", (1,))):
            agreement = Agreement(
                study="gliomas",
                proposal="0" * 64,
                mechanism=MECHANISM,
                members=frozenset(),
                steps=10,
            )
            ledger.agree(run, agreement)
            for number in rounds:
                ledger.charge(
                    study="gliomas",
                    run=run,
                    round=number,
                    message_id=f"{run}-{number}",
                    mechanism=MECHANISM,
                )
        return ledger.spent()


def authority(folder: Path) -> Path:
    write_certificates(
        host="localhost",
        authority=folder / "ca.crt",
        server=folder / "server.crt",
        authority_key=folder / "ca.key",
        server_key=folder / "server.key",
    )
    return folder / "ca.crt"


def numbers(status: SiteStatus) -> dict[tuple[str, ...], float]:
    return {(each.metric.name, *each.labels): float(each.value) for each in samples(status)}


def test_the_budget_is_what_the_ledger_counts(site: SiteConfig, spent: Any) -> None:
    ledger = read_status(site).ledger
    assert ledger is not None
    assert ledger.epsilon_spent == pytest.approx(spent.private_epsilon)
    assert ledger.epsilon_left == pytest.approx(spent.remaining)
    assert (ledger.epsilon_budget, ledger.delta) == (40.0, 1e-5)
    # A round that was computed again is one round.
    assert [(run.study, run.run, run.rounds) for run in ledger.runs] == [
        ("gliomas", "first", 2),
        ("gliomas", "second", 1),
    ]


def test_what_an_acknowledgement_charged_is_counted_too(site: SiteConfig, spent: Any) -> None:
    with LedgerStore.open(site.state / "ledger") as store:
        entries = list(store.entries)
    carried = {name: entries[-1].content[name] for name in ("study", "run", "mechanism", "steps")}
    last = Entry(sequence=9, previous="", time=entries[-1].time, kind="carry", content=carried)
    found = summary.summarised([*entries, last])
    assert found.epsilon > spent.private_epsilon
    twice = summary.summarised([*entries, last, replace(last, sequence=10)])
    assert twice.epsilon > found.epsilon


def test_a_site_that_does_not_run_is_not_connected_whatever_a_killed_one_left(
    site: SiteConfig,
) -> None:
    note_connection(site.state, HERE)
    status = read_status(site)
    assert (status.running, status.connected) == (False, False)
    assert status.health.reasons == ("not-running",)
    with exclusive(site.state / LOCK, noun="a site"):
        status = read_status(site)
    assert (status.running, status.connected, status.health.status) == (True, True, "ok")
    assert status.connection_since == HERE.since


def test_a_connection_that_cannot_be_written_down_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    note_connection(tmp_path / "file", HERE)
    assert read_connection(tmp_path / "file") is None
    (tmp_path / CONNECTION).write_text("{")
    assert read_connection(tmp_path) is None
    note_connection(tmp_path, HERE)
    assert read_connection(tmp_path) == HERE
    forget_connection(tmp_path)
    assert read_connection(tmp_path) is None


def test_what_ails_a_site_is_told_by_fixed_words(
    site: SiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfl.deployment import certificates

    away = Connection.now(connected=False)
    assert read_status(site, connection=away).health.reasons == ("not-connected",)
    pause(site.state)
    paused = read_status(site, connection=HERE)
    assert (paused.paused, paused.health.status) == (True, "ok")
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", -0.01)
    old = authority(tmp_path)
    (site.state / "ledger" / "ledger.sqlite").write_bytes(b"damage")
    ill = read_status(site, connection=HERE, authority=old)
    assert ill.health.reasons == ("ledger-unreadable", "certificate-expired")
    assert ill.ledger is None
    Departure(date="2026-01-02", reason="the study is over").write(site.state)
    assert read_status(site).health.reasons[0] == "left"


def test_the_numbers_are_those_of_the_status(site: SiteConfig, spent: Any, tmp_path: Path) -> None:
    found = numbers(read_status(site, connection=HERE, authority=authority(tmp_path)))
    assert {name for name, *_ in found} == {metric.name for metric in METRICS}
    assert found["medfl_site_connected",] == found["medfl_site_healthy",] == 1.0
    assert found["medfl_site_paused",] == 0.0
    assert found["medfl_site_epsilon_spent",] == pytest.approx(spent.private_epsilon)
    assert found["medfl_site_epsilon_left",] == pytest.approx(spent.remaining)
    assert found["medfl_site_rounds_total", "gliomas", "first"] == 2.0
    assert found["medfl_site_certificate_left_seconds",] == pytest.approx(3650 * 86400, rel=0.01)
    ago = (
        datetime.now(UTC).timestamp()
        - found["medfl_site_last_round_timestamp_seconds", "gliomas", "second"]
    )
    assert 0 <= ago < 600


def test_the_numbers_do_not_tell_how_long_a_round_was_computed(
    site: SiteConfig, spent: Any
) -> None:
    # How many patients were drawn follows from that; so a release changes nothing here.
    before = read_status(site, connection=HERE)
    with hospital_state(site).open_ledger() as ledger:
        ledger.mark_released("second-1", "0" * 64)
    after = read_status(site, connection=HERE)
    assert before.model_copy(update={"disk_free_bytes": 0}) == after.model_copy(
        update={"disk_free_bytes": 0}
    )


def test_no_patient_and_no_folder_stands_in_anything_shown(
    site: SiteConfig, file: Path, medfl: Command, spent: Any, tmp_path: Path
) -> None:
    names = {path.name for root in site.data.roots for path in root.iterdir()}
    assert names
    status = read_status(site, connection=HERE)
    told = events(status, LONG_AGO, site=site)
    shown = [medfl("site", "status", file, *more)[1] for more in ((), ("--json",), ("--health",))]
    text = "".join([*shown, status.model_dump_json(), repr(list(samples(status))), repr(told)])
    assert not [name for name in (*names, str(tmp_path), str(site.data.root)) if name in text]


def test_a_site_without_connection_is_told_after_five_minutes(site: SiteConfig) -> None:
    def told(connected: bool, minutes: float) -> Any:
        since = datetime.now(UTC) - timedelta(minutes=minutes)
        connection = Connection(connected=connected, since=since)
        found = events(read_status(site, connection=connection), LONG_AGO, site=site)
        return [each.code for each in found.events], "connection-lost" in found.over

    assert told(False, 4.9) == ([], False)
    assert told(False, 5.1) == (["connection-lost"], False)
    assert told(True, 60) == ([], True)


def test_budget_and_disk_are_told_below_their_limits(site: SiteConfig, spent: Any) -> None:
    def told(**limits: float) -> dict[str, Any]:
        settings = site.monitoring.model_copy(update=limits)
        changed = site.model_copy(update={"monitoring": settings})
        found = events(read_status(site, connection=HERE), LONG_AGO, site=changed)
        return {each.code: each.details for each in found.events}

    part = spent.remaining / spent.budget
    assert told(budget_left=part * 0.99, disk_gigabytes=0.0) == {}
    low = told(budget_left=part * 1.01, disk_gigabytes=1e6)
    assert low["budget-low"]["epsilon_left"] == pytest.approx(spent.remaining)
    assert set(low) == {"budget-low", "disk-low"}


def test_a_refused_message_is_told_once_a_day_for_each_code(site: SiteConfig) -> None:
    log = AuditLog(site.state)
    for code in ("policy-noise", "policy-noise", "budget-exceeded", "site-paused"):
        log.note_refusal(code, message="propose")
    status = read_status(site, connection=HERE)
    found = events(status, LONG_AGO, site=site).events
    assert {(each.code, each.details["code"]) for each in found} == {
        ("round-failed", "policy-noise"),
        ("round-failed", "budget-exceeded"),
    }
    assert len({each.key for each in found}) == 2
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert events(status, later, site=site).events == ()


# The command, and the schema


def test_programs_get_what_the_schema_says(
    file: Path, site: SiteConfig, spent: Any, medfl: Command, tmp_path: Path
) -> None:
    schema = json.loads(SCHEMA.read_text())
    authority(tmp_path).rename(site.state / "ca.crt")
    code, output, _ = medfl("site", "status", file, "--json")
    assert code == 0
    jsonschema.validate(json.loads(output), schema)
    assert json.loads(output)["version"] == 1
    assert json.loads(output)["ledger"]["epsilon_budget"] == 40.0
    (site.state / "ledger" / "ledger.sqlite").unlink()
    (site.state / "ca.crt").unlink()
    ill = json.loads(medfl("site", "status", file, "--json")[1])
    jsonschema.validate(ill, schema)
    assert (ill["ledger"], ill["authority"]) == (None, None)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**ill, "version": 2}, schema)


def test_the_schema_that_is_shipped_is_that_of_the_code() -> None:
    assert SCHEMA.read_text() == schema_text(SiteStatus)


def test_health_is_an_exit_code(file: Path, site: SiteConfig, medfl: Command) -> None:
    assert medfl("site", "status", file, "--health")[:2] == (1, "failing not-running\n")
    note_connection(site.state, HERE)
    with exclusive(site.state / LOCK, noun="a site"):
        assert medfl("site", "status", file, "--health")[:2] == (0, "ok\n")
    assert medfl("site", "status", file, "--health", "--json")[0] == 2


def test_people_get_lines(file: Path, site: SiteConfig, spent: Any, medfl: Command) -> None:
    note_connection(site.state, HERE)
    pause(site.state)
    with exclusive(site.state / LOCK, noun="a site"):
        code, output, _ = medfl("site", "status", file)
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == "north: runs, connected since 2026-01-02 03:04 UTC, paused"
    assert lines[1].startswith("Epsilon: ") and " of 40 spent" in lines[1]
    assert "Run second of gliomas: 1 rounds" in output
    assert "does not run" in medfl("site", "status", file)[1]
