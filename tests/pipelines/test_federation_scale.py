"""The federation's benchmark: what counts as overhead, and one failed cell costs no other."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[2] / "pipelines"
PAYLOAD_BYTES = {1: 900_000, 20: 18_000_000}


@pytest.fixture
def scale(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("federation_scale")


@pytest.fixture
def benchmark(scale: ModuleType) -> ModuleType:
    return importlib.import_module("benchmark")


def cost(scale: ModuleType, cell: Any, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "way": cell.way,
        "sites": cell.sites,
        "payload": cell.payload,
        "payload_bytes": PAYLOAD_BYTES[cell.payload],
        "round_seconds": 3.0,
        "training_seconds": 1.0,
        "overhead_seconds": 2.0,
        "total_seconds": 9.0,
        "server_bytes": 4 * PAYLOAD_BYTES[cell.payload],
        "superlink_bytes": None,
    }
    return scale.RoundCost(**{**values, **changes})


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def trained(*rounds: tuple[int, float]) -> list[dict[str, Any]]:
    """The notes of one process."""
    notes: list[dict[str, Any]] = []
    for number, seconds in rounds:
        notes.append({"kind": "training", "seconds": seconds})
        notes.append({"kind": "update", "round": number})
    return notes


@pytest.mark.parametrize(
    ("way", "expected"), [("inprocess", 5.0), ("ray", 3.0), ("processes", 3.0)]
)
def test_training_is_that_of_all_sites_where_they_take_turns_else_of_the_slowest(
    way: str, expected: float, scale: ModuleType
) -> None:
    cell = scale.Cell(way=way, sites=2, payload=1)
    notes = [trained((1, 9.0), (2, 2.0)), trained((1, 9.0), (2, 3.0))]
    assert scale._training(notes, cell, rounds=[2]) == {2: expected}


def test_sites_that_only_answer_do_not_train(scale: ModuleType) -> None:
    cell = scale.Cell(way="server", sites=2, payload=1)
    assert scale._training([], cell, rounds=[2, 3]) == {2: 0.0, 3: 0.0}


def test_a_round_whose_training_was_not_seen_has_no_overhead(scale: ModuleType) -> None:
    cell = scale.Cell(way="ray", sites=2, payload=1)
    with pytest.raises(scale.CellFailed, match="round 2: expected 2 notes of training, found 1"):
        scale._training([trained((2, 1.0))], cell, rounds=[2])


def test_a_round_without_one_of_its_sites_is_not_measured(scale: ModuleType) -> None:
    cell = scale.Cell(way="ray", sites=2, payload=1)
    sites = {"a": {"outcome": "admitted"}, "b": {"outcome": "silent"}}
    with pytest.raises(scale.CellFailed, match="round 2: 1 of 2 sites"):
        scale._require_everybody([{"round": 2, "sites": sites}], cell)


def test_everything_is_measured_unless_a_part_is_named(scale: ModuleType) -> None:
    everything = scale.cells(ways=list(scale.WAYS), sites=(), payloads=scale.PAYLOADS)
    counts = {way: sorted({c.sites for c in everything if c.way == way}) for way in scale.WAYS}
    assert counts["inprocess"] == [2, 8, 32, 128]
    assert counts["ray"] == [2, 8, 32]
    assert counts["processes"] == [2, 4, 8]
    (named,) = scale.cells(ways=["ray"], sites=[5], payloads=[20])
    assert (named.way, named.sites, named.payload) == ("ray", 5, 20)


def test_a_cell_that_fails_is_told_and_the_others_are_kept(
    benchmark: ModuleType, scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(cell: Any) -> Any:
        if cell.sites == 8:
            raise scale.CellFailed("no node came")
        return cost(scale, cell)

    monkeypatch.setattr(scale, "measure", measure)
    arguments = ["federation", "--way", "ray", "--payload", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(benchmark.app, arguments)
    assert done.exit_code == 1
    assert "failed: no node came" in done.stdout
    report = json.loads((tmp_path / "out" / "federation.json").read_text())
    assert [entry["sites"] for entry in report["rounds"]] == [2, 32]
    assert [(entry["sites"], entry["reason"]) for entry in report["failures"]] == [
        (8, "no node came")
    ]
    assert (tmp_path / "out" / "federation.png").stat().st_size > 0


@pytest.mark.parametrize("arguments", [["--way", "pigeon"], ["--payload", "3"], ["--sites", "0"]])
def test_a_part_that_there_is_not_is_refused(arguments: list[str], benchmark: ModuleType) -> None:
    assert CliRunner().invoke(benchmark.app, ["federation", *arguments]).exit_code == 2


def test_a_process_that_ends_without_a_result_is_a_failed_cell(
    scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "HERE", tmp_path)
    cell = scale.Cell(way="ray", sites=2, payload=1)
    script = tmp_path / "federation_cost.py"
    script.write_text("raise SystemExit('out of disk')")
    with pytest.raises(scale.CellFailed, match="out of disk"):
        scale.measure(cell)
    script.write_text("print('{}')")
    with pytest.raises(scale.CellFailed, match="left nothing that can be read"):
        scale.measure(cell)


def test_a_cell_that_hangs_is_ended_with_all_that_it_started(
    scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "HERE", tmp_path)
    monkeypatch.setattr(scale, "CELL_SECONDS", 5.0)
    number = tmp_path / "number"
    (tmp_path / "federation_cost.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(number)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(scale.CellFailed, match="not finished after 5 s"):
        scale.measure(scale.Cell(way="ray", sites=2, payload=1))
    pid, deadline = int(number.read_text()), time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_the_figure_shows_what_there_is(scale: ModuleType) -> None:
    cells = scale.cells(ways=list(scale.WAYS), sites=(), payloads=scale.PAYLOADS)
    figure = scale.figure([cost(scale, cell) for cell in cells])
    left, right = figure.axes
    assert len(left.lines) == 3 * len(scale.PAYLOADS)
    # The server alone, the one of real processes, and what holding all updates would take.
    assert len(right.lines) == 3 * len(scale.PAYLOADS)
    scale.figure([cost(scale, cells[0], server_bytes=None)]).savefig(io.BytesIO())


@pytest.mark.slow
def test_the_servers_memory_does_not_grow_with_the_sites(tmp_path: Path) -> None:
    command = [sys.executable, str(PIPELINES / "benchmark.py"), "federation", "--out", tmp_path]
    part = ["--way", "server", "--sites", "2", "--sites", "24", "--payload", "20"]
    subprocess.run([*command, *part], check=True, timeout=500)
    few, many = json.loads((tmp_path / "federation.json").read_text())["rounds"]
    assert (few["sites"], many["sites"]) == (2, 24)
    assert many["server_bytes"] < few["server_bytes"] + 4 * many["payload_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["inprocess", "ray"])
def test_a_round_costs_more_than_its_training(way: str, tmp_path: Path) -> None:
    command = [sys.executable, str(PIPELINES / "benchmark.py"), "federation", "--out", tmp_path]
    part = ["--way", way, "--sites", "2", "--payload", "1"]
    subprocess.run([*command, *part], check=True, timeout=500)
    (found,) = json.loads((tmp_path / "federation.json").read_text())["rounds"]
    assert 0 < found["training_seconds"] < found["round_seconds"] < found["total_seconds"]
    assert found["payload_bytes"] == pytest.approx(0.9e6, rel=0.05)
