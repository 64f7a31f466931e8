"""The page about a run under way: what it shows, and to whom."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from medfl.errors import ReportError
from medfl.reporting import dashboard
from medfl.reporting.dashboard import LOOPBACK, REFRESH_SECONDS, open_dashboard, render_live
from medfl.runs.attendance import AWAY, Absence, Attendance
from medfl.runs.files import ATTENDANCE
from medfl.runs.live_run import LiveRun, read_live

RunBuilder = Callable[..., Path]


@pytest.fixture
def under_way(build_run: RunBuilder) -> Path:
    """A run that has not come to its end."""
    run = build_run()
    for name in ("summary.json", "privacy.json", "federation.json"):
        (run / name).unlink(missing_ok=True)
    return run


@pytest.fixture
def page(under_way: Path) -> Iterator[int]:
    """Port of its page."""
    with open_dashboard(under_way, port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def fetched(port: int, path: str, *, method: str = "GET", host: str = "") -> tuple[int, str]:
    """Status and text of an answer."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=20)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_rounds_and_budgets_are_those_of_the_run_folder(under_way: Path) -> None:
    run = read_live(under_way)
    last = json.loads((under_way / "rounds.jsonl").read_text().splitlines()[-1])
    assert run.done == last["round"] <= run.rounds
    assert {site.name: site.epsilon for site in run.sites} == {
        name: float(at["epsilon"]) for name, at in last["sites"].items()
    }
    shown = render_live(run)
    for name, at in last["sites"].items():
        assert f">{name}<" in shown
        assert f"{float(at['epsilon']):.2f}" in shown


def test_it_renews_itself_until_the_run_ends(under_way: Path) -> None:
    assert 'http-equiv="refresh"' in render_live(read_live(under_way))
    (under_way / "summary.json").write_text("{}")
    assert 'http-equiv="refresh"' not in render_live(read_live(under_way))


def test_a_line_that_is_being_written_is_left_for_the_next_time(under_way: Path) -> None:
    before = read_live(under_way)
    with (under_way / "rounds.jsonl").open("a") as file:
        file.write('{"round": 99, "seco')
    assert read_live(under_way).done == before.done


def test_a_run_without_a_finished_round_is_shown(under_way: Path) -> None:
    for name in ("rounds.jsonl", "metrics.csv"):
        (under_way / name).unlink()
    assert "The first round is under way" in render_live(read_live(under_way))


def test_a_site_that_is_silent_stands_out(under_way: Path) -> None:
    lines = (under_way / "rounds.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    name = next(iter(last["sites"]))
    last["sites"][name] |= {"outcome": "silent", "code": "silent"}
    (under_way / "rounds.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    assert '<td class="late">silent</td>' in render_live(read_live(under_way))


def test_a_site_that_the_run_goes_on_without_stands_out(under_way: Path) -> None:
    away = {"west": Absence(code=AWAY, seconds=30.0)}
    line = ATTENDANCE.line(Attendance(first_round=1, absent=away))
    (under_way / ATTENDANCE.name).write_text(line + '{"first_')  # the next one is being written
    shown = render_live(read_live(under_way))
    assert "west takes no part: no answer within 30 s (not connected)." in shown


def test_names_cannot_write_the_page(under_way: Path) -> None:
    path = under_way / "rounds.jsonl"
    path.write_text(path.read_text().replace('"North"', '"<script>alert(1)</script>"'))
    page = render_live(read_live(under_way))
    assert "alert(1)" in page
    assert "<script" not in page


def test_only_one_page_is_answered_and_only_to_this_machine(page: int) -> None:
    status, text = fetched(page, "/")
    assert status == 200
    assert "Epsilon spent" in text
    for other in ("/study.json", "/../run.json", "/?", "/index.html"):
        assert fetched(page, other)[0] == 404
    assert fetched(page, "/", host="evil.example")[0] == 404
    assert fetched(page, "/", method="POST")[0] == 501


def test_a_folder_without_a_run_and_a_taken_port_are_refused(
    under_way: Path, tmp_path: Path
) -> None:
    with pytest.raises(ReportError, match="expected a run folder"):
        open_dashboard(tmp_path / "nothing", port=0)
    with open_dashboard(under_way, port=0) as first, pytest.raises(ReportError, match="free port"):
        open_dashboard(under_way, port=first.server_port)


# --- in a real browser


OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


def wait_in_round(run: Path, *, phase: str = "") -> None:
    """Let the run wait for two of its sites."""
    now = datetime.now(UTC)
    waiting = {
        "round": read_live(run).done + 1,
        "since": now.isoformat(),
        "deadline": (now + timedelta(hours=1)).isoformat(),
        "asked": ["East", "North", "South", "West"],
        "answered": ["North", "West"],
        "phase": phase,
    }
    (run / "waiting.json").write_text(json.dumps(waiting))


def test_the_phase_of_a_secure_sum_is_shown(under_way: Path) -> None:
    wait_in_round(under_way)
    assert "Now:" not in render_live(read_live(under_way))
    wait_in_round(under_way, phase="shares of secrets")
    assert "Now: shares of secrets. Asked: East, North" in render_live(read_live(under_way))


@pytest.mark.slow
def test_a_browser_shows_the_page(browser: str, under_way: Path, page: int, tmp_path: Path) -> None:
    wait_in_round(under_way)
    picture = tmp_path / "page.png"
    address = f"http://{LOOPBACK}:{page}/"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shot = f"--screenshot={picture}"
    subprocess.run(
        [browser, *OPTIONS, profile, shot, "--window-size=900,900", address],
        capture_output=True,
        timeout=120,
        check=True,
    )
    dumped = subprocess.run(
        [browser, *OPTIONS, profile, "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Epsilon spent in this run" in dumped.stdout
    assert "not answered yet: <strong>East, South</strong>" in dumped.stdout
    assert picture.stat().st_size > 20_000


@pytest.mark.slow
def test_a_browser_renews_the_page_by_itself_until_the_run_ends(
    browser: str, under_way: Path, page: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bool] = []

    def read_and_count(folder: Path) -> LiveRun:
        run = read_live(folder)
        shown.append(run.finished)
        return run

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    monkeypatch.setattr(dashboard, "read_live", read_and_count)
    process = subprocess.Popen(
        [
            *(browser, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"),
            *("--remote-debugging-port=0", f"http://{LOOPBACK}:{page}/"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(shown) >= 3)
        assert not any(shown)
        (under_way / "summary.json").write_text("{}")
        wait_for(lambda: shown[-1])
        time.sleep(2 * REFRESH_SECONDS)
        assert sum(shown) == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
