"""The page about a run under way: what it shows, and to whom."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medfl.errors import ReportError
from medfl.reporting.dashboard import LOOPBACK, open_dashboard, render_live
from medfl.reporting.live_run import read_live

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


def test_names_cannot_write_the_page(under_way: Path) -> None:
    text = (under_way / "study.json").read_text()
    study = json.loads(text) | {"id": "<script>alert(1)</script>"}
    (under_way / "study.json").write_text(json.dumps(study))
    assert "<script" not in render_live(read_live(under_way))


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


@pytest.mark.slow
def test_a_browser_shows_the_page(page: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    address = f"http://{LOOPBACK}:{page}/"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shot = f"--screenshot={picture}"
    subprocess.run(
        [browser, *options, profile, shot, "--window-size=900,900", address],
        capture_output=True,
        timeout=120,
        check=True,
    )
    dumped = subprocess.run(
        [browser, *options, profile, "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Epsilon spent in this run" in dumped.stdout
    assert picture.stat().st_size > 20_000
