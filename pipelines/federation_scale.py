"""What a round costs beside its training, and the server's memory, as sites and payload grow.

Every cell (a way, a number of sites, a payload) runs in processes of its own, one cell at a time. A
cell that fails says why and the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

HERE = Path(__file__).parent
OBSERVED = HERE / "observed"
NOTES = "MEDFL_BENCHMARK_NOTES"

WAYS = {
    "inprocess": "one process",
    "ray": "simulation runtime",
    "processes": "real processes",
    "server": "server alone",
}
SITES = {
    "inprocess": (2, 8, 32, 128),
    "ray": (2, 8, 32),
    "processes": (2, 4, 8),
    "server": (2, 8, 32, 128),
}
PAYLOADS = (1, 20)
# The first round prepares and caches the patients.
WARM_UP = 1
CELL_SECONDS = 900.0
COLOURS = {
    "inprocess": "tab:blue",
    "ray": "tab:green",
    "processes": "tab:orange",
    "server": "tab:purple",
}
DEFINITION = (
    "Overhead: the round less the noisy steps of its sites, of all of them where they run one "
    "after the other (one process), else of the slowest one; median of the rounds after the "
    "first. Sites that wait for a core count as overhead. Server alone: sites that answer at "
    "once. Memory: peak above the imports of the process that holds the server; one process "
    "holds the sites as well."
)


class CellFailed(Exception):
    """A cell could not be measured; says why."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure.

    Attributes:
        way: Key of `WAYS`.
        sites: How many.
        payload: Of `PAYLOADS`.
    """

    way: str
    sites: int
    payload: int

    @property
    def label(self) -> str:
        """The cell in words."""
        return f"{WAYS[self.way]}, {self.sites} sites, {self.payload} MB"


@dataclass(frozen=True, kw_only=True)
class RoundCost:
    """What a cell cost.

    Attributes:
        payload_bytes: Of the model as float32.
        round_seconds: Median of the rounds after the first.
        training_seconds: Median of what is not overhead.
        overhead_seconds: Median of the difference.
        total_seconds: The whole run, with what comes before and after the rounds.
        server_bytes: Peak memory of the server's process above its imports.
        superlink_bytes: Peak memory of the SuperLink above its start; None where there is none.
    """

    way: str
    sites: int
    payload: int
    payload_bytes: int
    round_seconds: float
    training_seconds: float
    overhead_seconds: float
    total_seconds: float
    server_bytes: int | None
    superlink_bytes: int | None


def cells(*, ways: Sequence[str], sites: Sequence[int], payloads: Sequence[int]) -> list[Cell]:
    """What to measure; the usual numbers of sites where none are given."""
    return [
        Cell(way=way, sites=count, payload=payload)
        for way in ways
        for payload in payloads
        for count in sites or SITES[way]
    ]


def measure(cell: Cell) -> RoundCost:
    """Run a cell.

    Raises:
        CellFailed: If it cannot be measured.
    """
    try:
        return _measured(cell)
    except (OSError, LookupError, ValueError) as error:
        raise CellFailed(f"left nothing that can be read: {error!r}") from None


def _measured(cell: Cell) -> RoundCost:
    # A short path, since Flower's and Ray's sockets have to fit into 107 characters.
    with tempfile.TemporaryDirectory(prefix="medfl-") as name:
        folder = Path(name)
        notes = folder / "notes"
        notes.mkdir()
        line = _run(cell, folder=folder, notes=notes)
        rounds = _lines(folder / "run" / "rounds.jsonl")
        payload_bytes = _payload_bytes(folder / "run" / "checkpoints" / "initial.safetensors")
        noted = [_lines(file) for file in notes.glob("*.jsonl")]
    _require_everybody(rounds, cell)
    later = {entry["round"]: entry["seconds"] for entry in rounds if entry["round"] > WARM_UP}
    if not later:
        raise CellFailed("no round after the first")
    training = _training(noted, cell, rounds=list(later))
    return RoundCost(
        way=cell.way,
        sites=cell.sites,
        payload=cell.payload,
        payload_bytes=payload_bytes,
        round_seconds=median(later.values()),
        training_seconds=median(training.values()),
        overhead_seconds=median(later[number] - training[number] for number in later),
        total_seconds=line["total_seconds"],
        server_bytes=_server_bytes(noted),
        superlink_bytes=line.get("superlink_bytes"),
    )


def _run(cell: Cell, *, folder: Path, notes: Path) -> dict[str, Any]:
    """Run a cell's script to its end; its last line of output is JSON."""
    script = "deployment_cost.py" if cell.way == "processes" else "federation_cost.py"
    arguments = [cell.way, str(cell.sites), str(cell.payload), str(folder)]
    environment = {
        **os.environ,
        NOTES: str(notes),
        "PYTHONPATH": str(OBSERVED),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    log, output = folder / "log", folder / "output"
    with log.open("wb") as errors, output.open("wb") as lines:
        child = subprocess.Popen(  # noqa: S603
            [sys.executable, str(HERE / script), *arguments],
            env=environment,
            stdout=lines,
            stderr=errors,
            start_new_session=True,
        )
        try:
            child.wait(timeout=CELL_SECONDS)
        except subprocess.TimeoutExpired:
            raise CellFailed(f"not finished after {CELL_SECONDS:g} s") from None
        finally:
            # Whatever the cell had started goes with it.
            _end_group(child)
    if child.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        raise CellFailed(said.splitlines()[-1] if said else f"exit code {child.returncode}")
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
    return result


def _end_group(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def _require_everybody(rounds: Sequence[dict[str, Any]], cell: Cell) -> None:
    for entry in rounds:
        admitted = [site for site in entry["sites"].values() if site["outcome"] == "admitted"]
        if len(admitted) != cell.sites:
            raise CellFailed(f"round {entry['round']}: {len(admitted)} of {cell.sites} sites")


def _training(
    noted: Sequence[Sequence[dict[str, Any]]], cell: Cell, *, rounds: Sequence[int]
) -> dict[int, float]:
    """Seconds by round that are not overhead."""
    if cell.way == "server":
        return dict.fromkeys(rounds, 0.0)
    by_round: dict[int, list[float]] = defaultdict(list)
    for of_process in noted:
        seconds = 0.0
        for entry in of_process:
            # A process notes how long it trained, and then in which round.
            if entry["kind"] == "training":
                seconds = entry["seconds"]
            elif entry["kind"] == "update":
                by_round[entry["round"]].append(seconds)
    for number in rounds:
        if len(by_round[number]) != cell.sites:
            raise CellFailed(
                f"round {number}: expected {cell.sites} notes of training, found "
                f"{len(by_round[number])}"
            )
    longest = sum if cell.way == "inprocess" else max
    return {number: longest(by_round[number]) for number in rounds}


def _server_bytes(noted: Sequence[Sequence[dict[str, Any]]]) -> int | None:
    for entry in (entry for of_process in noted for entry in of_process):
        if entry["kind"] == "server" and entry["base_bytes"] is not None:
            return int(entry["peak_bytes"] - entry["base_bytes"])
    return None


def _payload_bytes(model: Path) -> int:
    """Size of the tensors of a safetensors file: the file less its header."""
    content = model.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(costs: Sequence[RoundCost], *, failures: dict[Cell, str]) -> Table:
    """All costs, and which cells have none."""
    result = Table(title="A round of a federation, one small step a site", caption=DEFINITION)
    result.add_column("way")
    seconds = ("round s", "training s", "overhead s", "whole run s")
    for heading in ("sites", "MB", *seconds, "server MB", "SuperLink MB"):
        result.add_column(heading, justify="right")
    for cost in costs:
        result.add_row(
            WAYS[cost.way],
            str(cost.sites),
            f"{cost.payload_bytes / 1e6:.1f}",
            f"{cost.round_seconds:.2f}",
            f"{cost.training_seconds:.2f}",
            f"{cost.overhead_seconds:.2f}",
            f"{cost.total_seconds:.0f}",
            _megabytes(cost.server_bytes),
            _megabytes(cost.superlink_bytes),
        )
    for cell in failures:
        result.add_row(WAYS[cell.way], str(cell.sites), str(cell.payload), "failed", style="red")
    return result


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f}"


def figure(costs: Sequence[RoundCost]) -> Figure:
    """Overhead and the server's memory against the number of sites, on logarithmic axes."""
    result = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = result.subplots(1, 2)
    for (way, payload), line in _by_way(costs).items():
        style: dict[str, Any] = {
            "color": COLOURS[way],
            "linestyle": "-" if payload == max(PAYLOADS) else "--",
            "marker": "o",
        }
        size = f"{line[0].payload_bytes / 1e6:.1f} MB"
        if way != "server":
            _plot(left, line, "overhead_seconds", unit=1.0, label=f"{WAYS[way]}, {size}", **style)
        if way in ("server", "processes"):
            _plot(right, line, "server_bytes", unit=1e6, label=f"{WAYS[way]}, {size}", **style)
    for payload in sorted({cost.payload for cost in costs}):
        some = [cost for cost in costs if cost.payload == payload]
        sites = sorted({cost.sites for cost in some})
        held = [count * some[0].payload_bytes / 1e6 for count in sites]
        label = f"all updates at once, {some[0].payload_bytes / 1e6:.1f} MB"
        right.plot(sites, held, color="tab:gray", linestyle=":", label=label)
    left.set_ylabel("overhead of a round in seconds")
    right.set_ylabel("memory of the server above its imports in MB")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("sites")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(fontsize=7)
    return result


def _by_way(costs: Sequence[RoundCost]) -> dict[tuple[str, int], list[RoundCost]]:
    lines: dict[tuple[str, int], list[RoundCost]] = defaultdict(list)
    for cost in sorted(costs, key=lambda cost: cost.sites):
        lines[cost.way, cost.payload].append(cost)
    return lines


def _plot(
    axes: Axes, line: Sequence[RoundCost], name: str, *, unit: float, label: str, **style: Any
) -> None:
    points = [(cost.sites, getattr(cost, name)) for cost in line]
    known = [(sites, value / unit) for sites, value in points if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), label=label, **style)
