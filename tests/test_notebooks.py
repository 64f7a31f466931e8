"""The notebooks run from top to bottom, and what is committed is what was run."""

from __future__ import annotations

import ast
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import jupytext
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))
MAX_BYTES = 500 * 1024  # the limit of the commit hook
MAX_SECONDS = 900  # of one cell, on a busy machine
LIBRARIES = {"IPython", "matplotlib", "medfl", "nibabel", "numpy"}
RENEW = "run `make notebooks`, then copy the result from runs/notebooks to notebooks"
# A folder at the root, of a user, or of a drive: none of them exists for another reader.
ABSOLUTE_PATH = re.compile(r"(?:^|(?<=[\s'\"(=:,]))(?:/|~/|[A-Za-z]:\\)[\w.-]+[/\\][\w.-]+")

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def committed(source: Path) -> NotebookNode:
    """The executed notebook beside its source."""
    return jupytext.read(source.with_suffix(".ipynb"))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(notebook: NotebookNode) -> list[str]:
    """Everything in the outputs that is read as text."""
    found = [output.text for output in outputs(notebook) if output.output_type == "stream"]
    for output in outputs(notebook):
        shown = output.get("data", {}).items()
        found += [value for kind, value in shown if not kind.startswith("image/")]
    return found


def pictures(notebook: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def expect_clean_run(notebook: NotebookNode) -> None:
    """Every cell ran once, in order, without a warning, an error or a path of the machine."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = [output.get("name", output.output_type) for output in outputs(notebook)]
    assert set(kinds) <= {"stdout", "display_data", "execute_result"}, kinds
    assert [text for text in texts(notebook) if ABSOLUTE_PATH.search(text)] == []


def test_there_are_notebooks() -> None:
    assert SOURCES
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {path.stem for path in SOURCES}


@pytest.mark.parametrize(
    "text",
    [
        "/home/someone/run",
        "saved to '/tmp/x/y.png'",
        "~/runs/demo",
        "C:\\Users\\someone",
        "file=/srv/a",
    ],
)
def test_paths_of_a_machine_are_recognised(text: str) -> None:
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["σ / (q n)", "run/report.html", "a/b", "1 / 2", "noise / C"])
def test_other_slashes_are_no_paths_of_a_machine(text: str) -> None:
    assert not ABSOLUTE_PATH.search(text)


@each_source
def test_committed_notebook_holds_the_cells_of_its_source(source: Path) -> None:
    expected, found = (
        [(cell.cell_type, cell.source) for cell in notebook.cells]
        for notebook in (jupytext.read(source), committed(source))
    )
    assert found == expected, RENEW


@each_source
def test_committed_notebook_shows_a_clean_run(source: Path) -> None:
    notebook = committed(source)
    expect_clean_run(notebook)
    assert pictures(notebook) > 0
    assert source.with_suffix(".ipynb").stat().st_size <= MAX_BYTES


@each_source
def test_notebook_needs_medfl_and_plotting_only(source: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names <= LIBRARIES


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notebooks are executed at small size, with all that they write."""
    monkeypatch.setenv("MEDFL_NOTEBOOK_SIZE", "small")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows pictures
    # A thread that waits must not keep a busy machine busier: small crops have little to share.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def client_of(notebook: NotebookNode, place: Path, **options: bool) -> NotebookClient:
    return NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=MAX_SECONDS,
        resources={"metadata": {"path": str(place)}},
        **options,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each_source
def test_source_runs_at_small_size(source: Path, place: Path) -> None:
    notebook = jupytext.read(source)
    client_of(notebook, place).execute()
    expect_clean_run(notebook)
    assert pictures(notebook) == pictures(committed(source))


def started_in(place: Path) -> list[list[str]]:
    """Command lines of the processes that a notebook's kernel has started, itself included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR", "").startswith(str(place)):
                found.append(process.cmdline())
    return found


def expect_nothing_left(place: Path) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while left := started_in(place):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


SERVE = """\
run("coordinator", "server", "init", "server", "--host", "127.0.0.1", "--port", free_port())
start("coordinator", "server", "start", "server")
wait_until(lambda: "Serving" in Path("coordinator.log").read_text(), "a server that serves")
"""


def deployment_that_ends(by: str) -> NotebookNode:
    """The helpers of the notebook that starts processes, a server, and something that happens."""
    notebook = jupytext.read(NOTEBOOKS / "05_deploy_a_hospital.py")
    happens = [SERVE, by, "print(list(running))"]
    notebook.cells = code_cells(notebook)[:2] + [new_code_cell(text) for text in happens]
    return notebook


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cell_that_fails_ends_what_the_notebook_has_started(place: Path) -> None:
    notebook = deployment_that_ends(by="raise RuntimeError('a cell fails')")
    client_of(notebook, place, allow_errors=True).execute()
    server, failed, after = code_cells(notebook)[-3:]
    assert "error" not in [output.output_type for output in server.outputs]
    assert failed.outputs[-1].output_type == "error"
    assert after.outputs[0].text == "[]\n"  # while the kernel went on
    expect_nothing_left(place)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kernel_that_is_killed_leaves_no_process(place: Path) -> None:
    notebook = deployment_that_ends(by="os.kill(os.getpid(), 9)")
    with pytest.raises(DeadKernelError):
        client_of(notebook, place).execute()
    expect_nothing_left(place)
