"""`medfl server status`: what a coordinator sees, with the server and without it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medfl.cli import main
from medfl.cli.status import keep_showing
from medfl.cli.status_view import View, one_line, render, report, view
from medfl.deployment.admission import Bundle, read_bundle
from medfl.deployment.coordinator.run_book import RunRecord
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.coordinator.status import status_of
from medfl.deployment.flower.control import Connection
from medfl.deployment.processes import free_port
from medfl.errors import FederationError
from medfl.protocol.keys import SiteKeys
from medfl.runs.attendance import AWAY, Absence, Attendance
from medfl.runs.files import WAITING
from medfl.runs.records import Round, SiteRound
from medfl.runs.waiting import AGREEING, CONNECTING, STARTING, Waiting
from medfl.server.run_folder import RunFolder


@pytest.fixture(autouse=True)
def ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and moves, whatever the tests are started from."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def bundles(tmp_path: Path) -> dict[str, Bundle]:
    made = {}
    for name in ("east", "north", "south"):
        keys = SiteKeys.create(tmp_path / name)
        keys.write_public(tmp_path / f"{name}.pub", folder=tmp_path / name)
        made[name] = read_bundle(tmp_path / f"{name}.pub")
    return made


@pytest.fixture
def server(tmp_path: Path, bundles: Mapping[str, Bundle]) -> ServerFolder:
    """Three admitted hospitals, one that was invited, and one that was revoked."""
    folder = ServerFolder.create(tmp_path / "server", host="localhost", port=free_port())
    for name, bundle in bundles.items():
        folder.admit(bundle, name=name)
    folder.invite("west")
    folder.revoke("south", reason="left the study")
    return folder


@pytest.fixture
def connections(bundles: Mapping[str, Bundle]) -> dict[bytes, Connection]:
    """East is there, north is away."""
    now = datetime.now(UTC)
    return {
        bundles["east"].site.node_key_pem: Connection(
            connected=True, since=now - timedelta(hours=3, minutes=1)
        ),
        bundles["north"].site.node_key_pem: Connection(
            connected=False, since=now - timedelta(minutes=7, seconds=1)
        ),
    }


@pytest.fixture
def run_dir(tmp_path: Path, federation: Any) -> Path:
    """A run in its third round of nine, which north and west keep waiting."""
    run = tmp_path / "run"
    folder = RunFolder(run)
    changes = {"id": "gliomas", "training": {"rounds": 9}}
    folder.begin(run="third-round", study=federation.study(**changes))
    sites = {
        "east": SiteRound(outcome="admitted", code="", epsilon=1.25, budget=8.0, steps=1),
        "north": SiteRound(outcome="silent", code="silent", epsilon=inf, budget=4.0, steps=0),
        "west": SiteRound(outcome="admitted", code="", epsilon=2.5, budget=8.0, steps=1),
    }
    for number in (1, 2):
        folder.append_round(Round(round=number, seconds=10.0 * number, sites=sites))
    now = datetime.now(UTC)
    waiting = Waiting(
        round=3,
        since=now - timedelta(minutes=2, seconds=1),
        deadline=now + timedelta(hours=1),
        asked=("east", "north", "west"),
        answered=("east",),
    )
    folder.write(WAITING, waiting)
    return run


def printed(moment: View, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=terminal)
    console.print(render(moment))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str, *, last: bool = False) -> str:
    lines = [line for line in text.splitlines() if line.strip().startswith(name)]
    return lines[-1 if last else 0]


def test_every_hospital_stands_with_state_connection_and_fingerprint(
    server: ServerFolder,
    bundles: Mapping[str, Bundle],
    connections: Mapping[bytes, Connection],
) -> None:
    text = printed(view(status_of(server, connections=connections), run_dir=None, under_way=False))
    assert re.search(r"admitted \S+ +yes, 3 h", row(text, "east"))
    assert re.search(r"admitted \S+ +no, 7 min", row(text, "north"))
    assert "left the study" in row(text, "south")
    assert "revoked" in row(text, "south")
    assert re.search(r"invited \S+ +none yet", row(text, "west"))
    for name, bundle in bundles.items():
        assert bundle.site.fingerprint in row(text, name)
    assert "the server answers" in text
    assert "No run yet" in text


def test_a_server_that_is_down_is_shown_from_its_files(server: ServerFolder, run_dir: Path) -> None:
    text = printed(view(status_of(server, connections=None), run_dir=run_dir, under_way=True))
    assert "does not answer: `medfl server start` starts it" in text
    assert "unknown" in row(text, "east")
    assert "gliomas" in text


def test_the_run_is_shown_with_budgets_and_who_is_late(
    server: ServerFolder, connections: Mapping[bytes, Connection], run_dir: Path
) -> None:
    moment = view(status_of(server, connections=connections), run_dir=run_dir, under_way=True)
    text = printed(moment)
    assert "2 of 9 rounds done" in text
    assert "Seconds of the last rounds: 10.0  20.0" in text
    assert re.search(r"1\.25 +8\.00 +admitted +0 +answered", row(text, "east", last=True))
    assert re.search(
        r"no limit +4\.00 +silent +2 +not answered for 2 min", row(text, "north", last=True)
    )
    assert "Late: north, west" in text
    coloured = printed(moment, terminal=True)
    alarming = re.findall(r"\x1b\[1;31m(\w+)", coloured)
    assert {"north", "west"} <= set(alarming)
    assert "east" not in alarming


def test_nobody_is_late_in_a_run_that_nobody_works_on(
    server: ServerFolder, connections: Mapping[bytes, Connection], run_dir: Path
) -> None:
    status = status_of(server, connections=connections)
    moment = view(status, run_dir=run_dir, under_way=False)
    assert "2 of 9 rounds done, not under way" in printed(moment)
    for text in (printed(moment), one_line(moment)):
        assert "late:" not in text.lower()
        assert "not answered" not in text
    found = report(moment)["run"]
    assert (found["under_way"], found["late"], found["waiting"]) == (False, False, None)
    (run_dir / "summary.json").write_text("{}")
    finished = view(status, run_dir=run_dir, under_way=True)
    assert "finished, 2 of 9 rounds" in one_line(finished)
    assert not finished.under_way


def test_a_certificate_near_its_end_stands_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfl.deployment import certificates

    monkeypatch.setattr(certificates, "SERVER_DAYS", 12)
    folder = ServerFolder.create(tmp_path / "short", host="localhost", port=8443)
    text = printed(view(status_of(folder, connections=None), run_dir=None, under_way=False))
    assert re.search(r"1[12] days left, until \S+\. Renew it with `medfl server renew`", text)
    assert "nobody yet" in text


def test_a_folder_that_is_no_run_is_said_to_be_none(server: ServerFolder, tmp_path: Path) -> None:
    moment = view(status_of(server, connections=None), run_dir=tmp_path / "nothing", under_way=True)
    assert "expected a run folder" in printed(moment)
    assert "run not readable" in one_line(moment)


def test_programs_get_the_same_as_people(
    server: ServerFolder, connections: Mapping[bytes, Connection], run_dir: Path
) -> None:
    found = report(
        view(status_of(server, connections=connections), run_dir=run_dir, under_way=True)
    )
    assert found["server"]["running"] is True
    assert found["server"]["certificate_days_left"] in (729, 730)
    assert {site["name"]: site["state"] for site in found["sites"]} == {
        "east": "admitted",
        "north": "admitted",
        "south": "revoked",
        "west": "invited",
    }
    assert [site["connected"] for site in found["sites"]] == [True, False, None, None]
    assert found["run"]["late_sites"] == ["north", "west"]
    assert found["run"]["waiting"]["answered"] == ["east"]
    assert found["run"]["sites"][0] == {
        "name": "east",
        "epsilon": 1.25,
        "budget": 8.0,
        "outcome": "admitted",
        "code": "",
        "missed": 0,
    }


def test_the_phase_of_a_secure_sum_is_shown(
    server: ServerFolder, connections: Mapping[bytes, Connection], run_dir: Path
) -> None:
    """Its rounds ask every site several times, so that a round alone says little."""
    waiting = WAITING.read(run_dir).model_copy(update={"phase": "unmasking the sum"})
    RunFolder(run_dir).write(WAITING, waiting)
    moment = view(status_of(server, connections=connections), run_dir=run_dir, under_way=True)
    assert "Round 3 (unmasking the sum): asked 2 min ago" in printed(moment)
    assert "waiting for north, west (unmasking the sum);" in one_line(moment)
    assert report(moment)["run"]["waiting"]["phase"] == "unmasking the sum"


def asking(run_dir: Path, *, phase: str, timeout: float | None, answered: str) -> None:
    """The sites are asked whether they take part in the third round and those after it."""
    waiting = Waiting.begin(3, asked=("east", "north"), timeout=timeout, phase=phase)
    RunFolder(run_dir).write(WAITING, waiting.hearing(answered.split()))


def test_who_has_answered_before_the_first_round_is_shown(
    server: ServerFolder, connections: Mapping[bytes, Connection], run_dir: Path
) -> None:
    def shown(**moment: Any) -> str:
        asking(run_dir, **moment)
        status = status_of(server, connections=connections)
        return printed(view(status, run_dir=run_dir, under_way=True))

    text = shown(phase=STARTING, timeout=None, answered="")
    assert "Before round 3 (the server's process starts): for 0 s" in text
    assert row(text, "east", last=True).endswith("not asked yet ")
    text = shown(phase=CONNECTING, timeout=30.0, answered="east")
    assert "Before round 3 (the sites connect): asked 0 s ago, goes on without the silent" in text
    assert " connected" in row(text, "east", last=True)
    assert "not connected for 0 s" in row(text, "north", last=True)
    text = shown(phase=AGREEING, timeout=None, answered="east")
    assert "(the sites agree): asked 0 s ago, and all of them are waited for" in text
    assert " answered" in row(text, "east", last=True)
    assert "not answered for 0 s" in row(text, "north", last=True)


def test_a_site_that_the_run_goes_on_without_is_named_with_the_reason(
    server: ServerFolder, connections: Mapping[bytes, Connection], run_dir: Path
) -> None:
    folder = RunFolder(run_dir)
    absent = {"south": Absence(code=AWAY, seconds=30.0), "north": Absence(code="paused", seconds=0)}
    folder.append_attendance(Attendance(first_round=1, absent={}))
    folder.append_attendance(Attendance(first_round=3, absent=absent))
    moment = view(status_of(server, connections=connections), run_dir=run_dir, under_way=True)
    text = printed(moment)
    away = row(text, "south", last=True)
    assert re.search(r"takes no part: no answer within 30 s \(not connected\) +2", away)
    assert re.search(r"no limit +4\.00 +takes no part: paused +2", row(text, "north", last=True))
    assert "without south (no answer within 30 s (not connected))" in one_line(moment)
    assert report(moment)["run"]["absent"]["south"] == {
        "code": "away",
        "reason": "no answer within 30 s (not connected)",
    }
    # They are asked again.
    asking(run_dir, phase=AGREEING, timeout=60.0, answered="")
    assert "takes no part" not in printed(
        view(status_of(server, connections=connections), run_dir=run_dir, under_way=True)
    )


# --- watching


class Ended(Exception):
    """The person pressed Ctrl-C."""


def watched(moments: list[View], *, terminal: bool) -> str:
    """What is written while these moments pass."""
    passing: Iterator[View] = iter(moments)
    left = len(moments)

    def wait(seconds: float) -> None:
        nonlocal left
        assert seconds > 0
        left -= 1
        if not left:
            raise Ended

    console = Console(file=io.StringIO(), width=140, force_terminal=terminal)
    with pytest.raises(Ended):
        keep_showing(lambda: next(passing), console, wait=wait)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def moments(
    server: ServerFolder, connections: Mapping[bytes, Connection], run_dir: Path
) -> list[View]:
    """Nothing happens, then a server goes away."""
    there = view(status_of(server, connections=connections), run_dir=run_dir, under_way=True)
    away = view(status_of(server, connections=None), run_dir=run_dir, under_way=True)
    return [there, there, there, away, away]


def test_a_log_file_gets_a_line_for_each_change_and_no_control_characters(
    moments: list[View],
) -> None:
    lines = watched(moments, terminal=False).splitlines()
    assert len(lines) == 2
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:]+Z server answers; connected 1 of 2: east;", lines[0])
    assert "gliomas: 2 of 9 rounds done; waiting for north, west; late: north, west" in lines[0]
    assert "epsilon east 1.25/8 north no limit/4 west 2.50/8" in lines[0]
    assert "server does not answer" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_is_redrawn_in_place(moments: list[View]) -> None:
    text = watched(moments, terminal=True)
    assert (
        text.count("fingerprint of its keys") == len(moments) + 1
    )  # left on the screen at the end
    assert "\x1b[1A" in text


# --- the command


@pytest.fixture
def medfl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line: exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfl", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "140")
        with pytest.raises(SystemExit) as end:
            main()
        seen = capsys.readouterr()
        return int(end.value.code or 0), seen.out, seen.err

    return run


def test_the_command_works_while_the_server_is_down(
    medfl: Callable[..., Any], server: ServerFolder, run_dir: Path
) -> None:
    code, out, _ = medfl("server", "status", server.path)
    assert code == 0
    assert "No run yet" in out
    record = RunRecord.begin("third-round", study="gliomas", out=run_dir, detached=False)
    with pytest.raises(FederationError), server.book.following(record):
        raise FederationError("Round 3: expected at least 3 usable updates, found 2.")
    code, out, _ = medfl("server", "status", server.path, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["server"]["running"] is False
    assert found["run"]["done"] == 2
    assert found["run"]["sites"][1]["epsilon"] == "inf"
    assert found["state"] == "failed: Round 3: expected at least 3 usable updates, found 2."
    for name in ("third-round", "third", run_dir):
        code, out, _ = medfl("server", "status", server.path, "--run", name)
        assert code == 0
        assert "2 of 9 rounds done, failed: Round 3: expected" in out
    code, _, err = medfl("server", "status", server.path, "--run", "fourth")
    assert code == 2
    assert "expected a run of this server (third-round), found 'fourth'" in err.lower()
    code, _, err = medfl("server", "status", server.path, "--json", "--watch")
    assert code == 2
    assert "found several" in err


def test_a_coordinator_invites_admits_exchanges_and_revokes(
    medfl: Callable[..., Any], tmp_path: Path
) -> None:
    place = tmp_path / "coordinator"
    assert medfl("server", "init", place, "--host", "h.example", "--name", "Gliomas")[0] == 0
    code, out, _ = medfl("server", "invite", place, "north", "-o", tmp_path)
    assert code == 0
    assert str(tmp_path / "north.invite") in out
    invitation = re.findall(r"invitation ([A-Z0-9-]+)\)", out)[0]
    keys = SiteKeys.create(tmp_path / "keys")
    public = tmp_path / "site.pub"
    keys.write_public(public, folder=tmp_path / "keys", invitation=invitation)
    code, out, _ = medfl("server", "admit", place, public, "north")
    assert code == 0
    assert f"answered its invitation {invitation}" in out
    first = read_bundle(public).site.fingerprint
    assert f"Compare by telephone, of its keys: {first}" in out
    keys.rotate(tmp_path / "keys").write_public(public, folder=tmp_path / "keys")
    code, out, _ = medfl("server", "admit", place, public, "north")
    assert code == 0
    assert f"signed by its old ones ({first})" in out
    code, out, err = medfl("server", "admit", place, public, "north")
    assert (code, "those that are admitted" in err) == (2, True)
    code, out, _ = medfl("server", "renew", place)
    assert (code, "New certificate" in out) == (0, True)
    code, out, _ = medfl("server", "revoke", place, "north", "--reason", "left")
    assert (code, "Revoked north" in out) == (0, True)
    assert ServerFolder(place).sites() == {}


def test_a_server_with_an_expired_certificate_does_not_start(
    medfl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfl.deployment import certificates

    monkeypatch.setattr(
        certificates, "_in_days", lambda _: datetime.now(UTC) - timedelta(seconds=2)
    )
    folder = ServerFolder.create(tmp_path / "expired", host="localhost", port=free_port())
    code, _, err = medfl("server", "start", folder.path)
    assert code == 2
    assert "medfl server renew" in err
    assert list(folder.logs.iterdir()) == []  # nothing was started
