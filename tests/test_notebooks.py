"""The notebooks run from top to bottom, and what is committed is what was run."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))
MAX_BYTES = 500 * 1024  # the limit of the commit hook
MAX_SECONDS = 400  # of one cell, on a busy machine
LIBRARIES = {"matplotlib", "medfl", "nibabel", "numpy", "torch"}
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


@pytest.mark.slow
@each_source
def test_source_runs_at_small_size(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFL_NOTEBOOK_SIZE", "small")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows pictures
    # A thread that waits must not keep a busy machine busier: small crops have little to share.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = jupytext.read(source)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=MAX_SECONDS,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    expect_clean_run(notebook)
    assert pictures(notebook) == pictures(committed(source))
