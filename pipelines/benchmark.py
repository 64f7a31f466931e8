"""Benchmarks of medfl on this machine.

    python pipelines/benchmark.py                     all parts
    python pipelines/benchmark.py step [--crop 32 --crop 48] [--quick] [--out DIR]
    python pipelines/benchmark.py waiting [--quick]
    python pipelines/benchmark.py sites [--jobs 2] [--quick]
    python pipelines/benchmark.py federation [--way ray --sites 8 --payload 20] [--out DIR]
    python pipelines/benchmark.py secure [--sites 8 --millions 1] [--out DIR]
    python pipelines/benchmark.py data [--full-size 50 --full-size 500]

`step` sets one step of patient-level DP-SGD beside plain training and beside Opacus' own modes,
with the same network, crops and threads. `waiting` times that step alone and beside a process that
keeps a core busy, with threads that spin while they wait and with threads that sleep. `sites` times
a round whose sites work one after the other and side by side. `federation`
shows what a round costs beside its training
and how much memory the server takes, in this process, on Flower's simulation runtime and as real
processes. `secure` sets a round of a secure sum beside the same round without it. `data` checks
cohorts of growing size and shows how long training waits for patients, and how much memory both
take for cases of full size.
Everything runs in processes of its own, one measurement at a time.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import federation_scale
import secure_sum_figure
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medfl.version import __version__

BASELINE = "plain_grouped"
ENGINE = "patient_engine"
NOISE = "noise_alone"
WAYS = {
    "plain_batch": "plain, one batch of 16 crops",
    BASELINE: "plain, patient by patient",
    ENGINE: "medfl patient engine (DP)",
    "opacus_hooks": "Opacus hooks (DP, per crop)",
    "opacus_ghost": "Opacus ghost clipping (DP, per crop)",
}
WAITING = {"ACTIVE": "spin", "PASSIVE": "sleep, as medfl has it"}
BUSY = "while True: pass"
TIMED_SECONDS = 8.0
PREFLIGHT_CASES = (250, 500, 1000)
FULL_SIZE_CASES = (10, 40)
# The two whose ratio matters are measured in turns, and the least disturbed turn of each counts.
TURNS = 3

console = Console()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """One way of training at one crop size.

    Attributes:
        way: Key of `WAYS`, or the noise alone.
        crop: Edge of a crop in voxels.
        seconds: Median wall time of a step.
        steps: Steps that were timed.
        peak_bytes: Peak resident memory above that of the imports.
        threads: CPU threads of torch.
    """

    way: str
    crop: int
    seconds: float
    steps: int
    peak_bytes: int
    threads: int


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Measure what medfl costs on this machine; all parts unless one is named."""
    if context.invoked_subcommand is None:
        step(crop=None, quick=False, out=None)
        waiting(quick=False)
        sites(jobs=2, quick=False)
        federation(way=None, sites=None, payload=None, out=None)
        secure(sites=None, millions=None, out=None)
        data(full_size=None)


@app.command()
def federation(
    way: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(federation_scale.WAYS)}.")
    ] = None,
    sites: Annotated[list[int] | None, typer.Option(min=1, help="How many sites.")] = None,
    payload: Annotated[
        list[int] | None, typer.Option(help=f"Megabytes, of {federation_scale.PAYLOADS}.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for federation.json and .png.")] = None,
) -> None:
    """Overhead of a round and memory of the server; everything unless a part is named."""
    ways, payloads = way or list(federation_scale.WAYS), payload or federation_scale.PAYLOADS
    _require(ways, among=federation_scale.WAYS, option="--way")
    _require(payloads, among=federation_scale.PAYLOADS, option="--payload")
    wanted = federation_scale.cells(ways=ways, sites=sites or (), payloads=payloads)
    costs: list[federation_scale.RoundCost] = []
    failures: dict[federation_scale.Cell, str] = {}
    for number, cell in enumerate(wanted, start=1):
        try:
            with console.status(f"{number}/{len(wanted)}: {cell.label}"):
                costs.append(federation_scale.measure(cell))
        except federation_scale.CellFailed as error:
            failures[cell] = str(error)
        outcome = f"failed: {failures[cell]}" if cell in failures else "measured"
        console.print(f"{number}/{len(wanted)} {cell.label}: {outcome}", markup=False)
        if out is not None:
            # After each, so that nothing is lost with a later one.
            _write_federation(costs, failures, out=out)
    console.print(federation_scale.table(costs, failures=failures))
    if out is not None and costs:
        federation_scale.figure(costs).savefig(out / "federation.png", dpi=150)
        console.print(f"Written to {out}")
    if failures:
        raise typer.Exit(1)


@app.command()
def secure(
    sites: Annotated[list[int] | None, typer.Option(min=2, max=1000, help="Several times.")] = None,
    millions: Annotated[
        list[float] | None, typer.Option(min=0.001, max=100, help="Of parameters; several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for secure.json and .png.")] = None,
) -> None:
    """Bytes and seconds of a secure sum, beside the same round without it."""
    costs = []
    for size in millions or secure_sum_figure.MILLIONS:
        for number in sites or secure_sum_figure.SITES:
            with console.status(f"{number} sites, {size:g} million parameters"):
                costs.append(_child("secure_sum_cost.py", str(number), str(size)))
            console.print(f"{number} sites, {size:g} million parameters: measured", highlight=False)
    console.print(secure_sum_figure.table(costs))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"environment": _environment(), "costs": costs}
        (out / "secure.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
        secure_sum_figure.draw(costs).savefig(out / "secure.png", dpi=130)
        console.print(f"Table and picture: {out}", highlight=False)


@app.command()
def data(
    full_size: Annotated[
        list[int] | None, typer.Option(min=3, help="How many cases of full size.")
    ] = None,
) -> None:
    """A preflight of growing cohorts, their memory, and how long training waits for patients."""
    table = Table(title="Preflight of small cases, one with each fault")
    for heading in ("cases", "seconds", "ms a case", "peak MB", "faults", "found"):
        table.add_column(heading, justify="right")
    for cases in PREFLIGHT_CASES:
        with console.status(f"preflight of {cases} cases"):
            cost = _child("data_cost.py", "preflight", str(cases))
        table.add_row(
            str(cases),
            f"{cost['seconds']:.1f}",
            f"{1000 * cost['seconds'] / cases:.1f}",
            f"{cost['peak_bytes'] / 1e6:.0f}",
            str(cost["planted"]),
            str(cost["found"]),
        )
    console.print(table)
    table = Table(title="Cases of 240 x 240 x 155 x 4")
    for heading in ("cases", "check s", "peak MB", "training s", "peak MB", "preparing s a case"):
        table.add_column(heading, justify="right")
    for cases in full_size or FULL_SIZE_CASES:
        with console.status(f"memory of {cases} cases"):
            cost = _child("data_cost.py", "memory", str(cases))
        table.add_row(
            str(cases),
            f"{cost['check']['seconds']:.0f}",
            f"{cost['check']['peak_bytes'] / 1e6:.0f}",
            f"{cost['train']['seconds']:.0f}",
            f"{cost['train']['peak_bytes'] / 1e6:.0f}",
            f"{cost['prepare']['seconds_a_case']:.1f}",
        )
    console.print(table)
    with console.status("waiting for patients"):
        cost = _child("data_cost.py", "reading")
    source = "LGG, site DU" if cost["real"] else "synthetic, in the size of LGG"
    console.print(
        f"Training on {cost['patients']} patients ({source}): {cost['waiting_share']:.1%} of a "
        f"step of {cost['step_seconds']:.2f} s waits for data; preparing a patient once takes "
        f"{cost['prepare_seconds_a_patient']:.2f} s.\n"
    )


def _require(values: Iterable[object], *, among: Collection[object], option: str) -> None:
    strange = [value for value in values if value not in among]
    if strange:
        raise typer.BadParameter(f"{option}: expected some of {list(among)}, found {strange}.")


def _write_federation(
    costs: list[federation_scale.RoundCost],
    failures: dict[federation_scale.Cell, str],
    *,
    out: Path,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "environment": _environment(),
        "definition": federation_scale.DEFINITION,
        "rounds": [asdict(cost) for cost in costs],
        "failures": [asdict(cell) | {"reason": reason} for cell, reason in failures.items()],
    }
    (out / "federation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@app.command()
def step(
    crop: Annotated[list[int] | None, typer.Option(help="Edge of a crop in voxels.")] = None,
    quick: Annotated[bool, typer.Option(help="One timed step each.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for benchmark.json and .png.")] = None,
) -> None:
    """Time and memory of one training step: 4 patients, 4 crops each."""
    crops = crop or [32, 48]
    turns = [*WAYS, NOISE, *[BASELINE, ENGINE] * (0 if quick else TURNS - 1)]
    costs: list[StepCost] = []
    for edge in crops:
        measured = [
            _measured(way, crop=edge, timed_seconds=0.0 if quick else TIMED_SECONDS)
            for way in turns
        ]
        costs += [
            min((cost for cost in measured if cost.way == way), key=lambda cost: cost.seconds)
            for way in (*WAYS, NOISE)
        ]
    for edge in crops:
        _print_table({cost.way: cost for cost in costs if cost.crop == edge}, edge=edge)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report = {"environment": _environment(), "steps": [asdict(cost) for cost in costs]}
        (out / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _figure(costs, crops=crops).savefig(out / "benchmark.png", dpi=150)
        console.print(f"Written to {out}")


@app.command()
def waiting(
    quick: Annotated[bool, typer.Option(help="One timed step each.")] = False,
) -> None:
    """Time of one private step, by how OpenMP's threads wait for each other."""
    seconds: dict[tuple[str, bool], float] = {}
    for busy, policy in itertools.product((False, True), WAITING):
        neighbour = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None  # noqa: S603
        try:
            with console.status(f"{policy}{' beside a busy process' if busy else ''}"):
                cost = StepCost(
                    **_child(
                        "step_cost.py",
                        ENGINE,
                        "32",
                        str(0.0 if quick else TIMED_SECONDS),
                        environment={"OMP_WAIT_POLICY": policy},
                    )
                )
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
        seconds[policy, busy] = cost.seconds
    table = Table(title=f"One private step, crops of 32^3, {cost.threads} threads")
    for heading in ("threads that wait", "alone, s", "beside a busy process, s", "x"):
        table.add_column(heading, justify="left" if heading == "threads that wait" else "right")
    for policy, label in WAITING.items():
        alone, beside = seconds[policy, False], seconds[policy, True]
        table.add_row(label, f"{alone:.2f}", f"{beside:.2f}", f"{beside / alone:.2f}")
    console.print(table)


@app.command()
def sites(
    jobs: Annotated[int, typer.Option(min=2, max=4, help="Sites that work side by side.")] = 2,
    quick: Annotated[bool, typer.Option(help="Few rounds, one turn.")] = False,
) -> None:
    """Time of a round of four sites, one after the other and side by side, in turns."""
    rounds, turns = (2, 1) if quick else (5, TURNS)
    costs: dict[int, list[dict[str, Any]]] = {1: [], jobs: []}
    for _, at_once in itertools.product(range(turns), costs):
        with console.status(f"sites at once: {at_once}"):
            costs[at_once].append(_child("side_by_side_cost.py", str(at_once), str(rounds)))
    if len({cost["weights"] for turn in costs.values() for cost in turn}) != 1:
        raise RuntimeError("Expected the same bits however many sites work at once, found others.")
    table = Table(
        title=f"A study of 4 sites and {rounds} rounds",
        caption="x: multiple of side by side; the least disturbed turn of each; same final weights",
    )
    for heading in ("sites at once", "a round, s", "x", "whole run, s", "x"):
        table.add_column(heading, justify="right")
    least = {
        at_once: {
            key: min(cost[key] for cost in turn) for key in ("round_seconds", "total_seconds")
        }
        for at_once, turn in costs.items()
    }
    for at_once, cost in least.items():
        cells = [
            text
            for key, seconds in cost.items()
            for text in (f"{seconds:.2f}", f"{seconds / least[jobs][key]:.2f}")
        ]
        table.add_row(str(at_once), *cells)
    console.print(table)


def _measured(way: str, *, crop: int, timed_seconds: float) -> StepCost:
    with console.status(f"{crop}^3: {WAYS.get(way, 'noise of one step')}"):
        return StepCost(**_child("step_cost.py", way, str(crop), str(timed_seconds)))


def _child(
    script: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Run a measuring script in a process of its own; its last line of output is JSON."""
    child = subprocess.run(  # noqa: S603
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if child.returncode != 0:
        console.print(child.stderr, markup=False)
        raise typer.Exit(1)
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return result


def _print_table(costs: dict[str, StepCost], *, edge: int) -> None:
    baseline = costs[BASELINE]
    table = Table(
        title=f"One step, crops of {edge}^3, {baseline.threads} threads",
        caption="x: multiple of plain training patient by patient",
    )
    table.add_column("way")
    for heading in ("seconds", "x", "peak GB", "x", "timed steps"):
        table.add_column(heading, justify="right")
    for way, label in WAYS.items():
        cost = costs[way]
        table.add_row(
            label,
            f"{cost.seconds:.2f}",
            f"{cost.seconds / baseline.seconds:.2f}",
            f"{cost.peak_bytes / 1e9:.2f}",
            f"{cost.peak_bytes / baseline.peak_bytes:.2f}",
            str(cost.steps),
        )
    console.print(table)
    share = costs[NOISE].seconds / costs[ENGINE].seconds
    milliseconds = 1000 * costs[NOISE].seconds
    console.print(f"Noise share of a step of the engine: {share:.1%} ({milliseconds:.0f} ms)\n")


def _figure(costs: list[StepCost], *, crops: list[int]) -> Figure:
    figure = Figure(figsize=(9, 0.8 + 0.35 * len(WAYS) * len(crops)), layout="constrained")
    panels = figure.subplots(len(crops), 2, squeeze=False)
    for row, edge in zip(panels, crops, strict=True):
        shown = {cost.way: cost for cost in costs if cost.crop == edge}
        seconds = [shown[way].seconds for way in WAYS]
        gigabytes = [shown[way].peak_bytes / 1e9 for way in WAYS]
        for axes, values, unit in zip(row, (seconds, gigabytes), ("s", "GB"), strict=True):
            colours = ["tab:orange" if way == ENGINE else "tab:gray" for way in WAYS]
            bars = axes.barh(list(WAYS.values()), values, color=colours)
            axes.bar_label(bars, fmt=f"%.2f {unit}", padding=3)
            axes.set_xlim(0, 1.25 * max(values))
            axes.invert_yaxis()
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_title(f"time of a step, crops of {edge}³")
        row[1].set_title("peak memory above the imports")
        row[1].set_yticks([])
    return figure


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "medfl": __version__,
        **{name: version(name) for name in ("torch", "monai", "opacus", "flwr", "numpy")},
    }


if __name__ == "__main__":
    app()
