"""Which audit or test catches which bug: each of `bugs` is planted and looked for.

    python pipelines/planted_bugs.py [--only NAME] [--jobs 2] [--out FILE.json]

Every bug is planted in a process of its own, into the code that users run, while no file changes.
Then the parts of `medfl audit` look for it, and so do the fast tests. The exit status is 1 where
nothing catches a bug, or where anything accuses the right code, which is the first row.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from bugs import BUGS, NONE, bug_named
from bugs.checks import check
from bugs.planting import Group
from bugs.plugin import VARIABLE
from bugs.table import COLUMNS, Cell, Row, markdown, problems, write_json

from medfl.deployment.processes import shorten_socket_paths

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

TESTS = (
    "tests/privacy/test_secure_noise.py",
    "tests/site/test_secure_round.py",
    "tests/privacy/test_engine.py",
    "tests/privacy/test_noise.py",
    "tests/privacy/test_sampling.py",
    "tests/privacy/test_patients.py",
    "tests/privacy/test_mechanism.py",
    "tests/privacy/ledger/test_ledger.py",
    "tests/data/test_crops.py",
    "tests/data/test_patient_store.py",
    "tests/segmentation/test_networks.py",
    "tests/site/test_changed_files.py",
    "tests/study/test_engines_agree.py",
    "tests/site/test_late_task.py",
    "tests/study/test_missing_modalities.py",
    "tests/site/test_round.py",
    "tests/site/test_training_patients.py",
    "tests/site/test_state.py",
    "tests/audit",
)
"""Those of the engine, of a patient's way to it, and of what a site does in a round."""

TOUCHED: dict[str, tuple[Group, ...]] = {
    "mechanism": ("noise", "clipping", "draws", "patients", "ledger"),
    "sensitivity": ("clipping", "draws", "patients", "ledger"),  # its noise is zero
    "canaries": ("noise", "clipping", "draws"),  # they have no images
    # Audits look at a site alone.
    "tests": ("noise", "clipping", "draws", "patients", "ledger", "secure"),
}
"""Groups of bugs that a column can notice at all; it is not run for the others."""

SECONDS = 1200  # of one process, at most
_FAILED, _PASSED = 1, 0  # pytest's exit statuses; all others mean that it could not run
# A file alone, without a test in it, could not even be read.
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One process: a bug, and who looks for it in that process."""

    bug: str
    columns: tuple[str, ...]


def tasks_of(names: Sequence[str], columns: Sequence[str]) -> list[Task]:
    """What there is to run, the quick columns of all bugs first.

    Args:
        names: Of the bugs.
        columns: Some of `COLUMNS`.
    """
    together = [("mechanism", "sensitivity"), ("tests",), ("canaries",)]
    tasks = []
    for parts in together:
        for name in names:
            wanted = tuple(part for part in parts if part in columns and _touches(name, part))
            if wanted:
                tasks.append(Task(bug=name, columns=wanted))
    return tasks


def _touches(name: str, column: str) -> bool:
    return name == NONE or bug_named(name).group in TOUCHED[column]


def run(task: Task) -> dict[str, Cell]:
    """Run a task in a process of its own."""
    return _tested(task) if task.columns == ("tests",) else _audited(task)


def _audited(task: Task) -> dict[str, Cell]:
    # Forked from a process that has imported everything: imports take longer than some columns.
    shorten_socket_paths()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bugs.checks"])
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.jsonl"
        process = context.Process(target=check, args=(task.bug, task.columns, out))
        process.start()
        process.join(SECONDS)
        if late := process.is_alive():
            process.kill()
            process.join()
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    cells = {}
    for values in map(json.loads, lines):
        column = values.pop("column")
        cells[column] = Cell(**values)
    why = "not finished in time" if late else f"ended with {process.exitcode}"
    failed = Cell(outcome="error", found=why, seconds=0.0)
    return {column: cells.get(column, failed) for column in task.columns}


def _tested(task: Task) -> dict[str, Cell]:
    begin = time.monotonic()
    tests = [path for path in TESTS if (ROOT / path).exists()]
    options = ("-x", "-q", "-m", "not slow", "-p", "bugs.plugin", "-p", "no:cacheprovider")
    try:
        done = _python("-m", "pytest", *options, *tests, bug=task.bug)
    except subprocess.TimeoutExpired:
        late = Cell(outcome="error", found="not finished in time", seconds=SECONDS)
        return {"tests": late}
    if done.returncode == _PASSED:
        cell = Cell(outcome="missed", found="", seconds=time.monotonic() - begin)
    else:
        failures = _FAILURE.findall(done.stdout)
        ran = done.returncode == _FAILED and failures
        cell = Cell(
            outcome="caught" if ran else "error",
            found=failures[0] if ran else _end(done.stdout + done.stderr),
            seconds=time.monotonic() - begin,
        )
    return {"tests": cell}


def _python(*arguments: str, bug: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, VARIABLE: bug, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def _end(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])[-400:]


def main(
    *,
    only: Annotated[list[str] | None, typer.Option(help="A bug; all if none is named.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="A column; all if none is named.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write everything found as JSON.")] = None,
) -> None:
    """Plant every bug and say what catches it."""
    names = [NONE, *(only or [bug.name for bug in BUGS])]
    for name in names[1:]:
        bug_named(name)
    begin = time.monotonic()
    cells: dict[str, dict[str, Cell]] = {name: {} for name in names}
    tasks = tasks_of(names, column or list(COLUMNS))
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, task): task for task in tasks}
        for number, future in enumerate(as_completed(running), start=1):
            task = running[future]
            cells[task.bug] |= future.result()
            typer.echo(f"[{number}/{len(tasks)}] {task.bug}: {_told(future.result())}")
            if out is not None:
                write_json(out, _rows(cells), seconds=time.monotonic() - begin)
    rows = _rows(cells)
    typer.echo(f"\n{markdown(rows)}\n\n{(time.monotonic() - begin) / 60:.1f} minutes")
    wrong = problems(rows)
    for problem in wrong:
        typer.echo(problem, err=True)
    if wrong:
        raise typer.Exit(1)


def _told(cells: dict[str, Cell]) -> str:
    return "; ".join(
        f"{COLUMNS[column]} {cell.outcome} ({cell.found or 'nothing found'}, {cell.seconds:.0f} s)"
        for column, cell in cells.items()
    )


def _rows(cells: dict[str, dict[str, Cell]]) -> list[Row]:
    rows = []
    for name, of_bug in cells.items():
        bug = None if name == NONE else bug_named(name)
        rows.append(
            Row(
                name=name,
                group=bug.group if bug else "",
                sentence=bug.sentence if bug else "The code as it is.",
                cells={column: of_bug[column] for column in COLUMNS if column in of_bug},
            )
        )
    return rows


if __name__ == "__main__":
    typer.run(main)
