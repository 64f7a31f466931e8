"""The shape of the package: what it exports, who imports whom, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import medfl
from medfl.study import shipped_starts

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "medfl"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMESPACES = [
    "medfl",
    *(
        module.name
        for module in pkgutil.walk_packages(medfl.__path__, prefix="medfl.")
        if module.ispkg
    ),
]
HEAVY = {"dp_accounting", "flwr", "matplotlib", "monai", "numpy", "opacus", "scipy", "torch"}
MAX_LINES = 400
# What Flower documents; everything else of it is private, and may change with any version.
PUBLIC_FLOWER = {
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
}
DOOR = (PACKAGE / "deployment" / "flower", PACKAGE / "study" / "in_process_grid.py")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment in the repository."""
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def imported_by(module: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after importing `module`."""
    code = f"import sys, {module}; sys.stdout.write(' '.join(sys.modules))"
    result = run("-c", code)
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


def imported_from(library: str, *, path: Path) -> set[str]:
    """Modules of a library that a file imports, in whatever way and wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.split(".")[0] == library}


def isort_style(name: str) -> tuple[int, str]:
    """Constants first, then classes, then the rest: the order that ruff's RUF022 keeps."""
    if name.isupper():
        return 0, name
    return (1 if name[:1].isupper() else 2), name


def test_the_tests_run_against_this_checkout() -> None:
    assert Path(medfl.__file__).resolve().parent == PACKAGE


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_public_namespace_lists_existing_names_in_order(namespace: str) -> None:
    module = importlib.import_module(namespace)
    exported = getattr(module, "__all__", [])
    assert exported == sorted(set(exported), key=isort_style)
    assert [name for name in exported if not hasattr(module, name)] == []


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_public_namespace_lists_everything_it_imports_from_medfl(namespace: str) -> None:
    module = importlib.import_module(namespace)
    brought_in = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("medfl.")
    }
    assert brought_in - set(getattr(module, "__all__", [])) == set()


def test_import_contracts_hold() -> None:
    result = run("-c", "from importlinter.cli import lint_imports_command as lint; lint()")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_private_names_of_flower_stand_behind_one_door() -> None:
    found = {
        path: imported_from("flwr", path=path) - PUBLIC_FLOWER
        for path in MODULES
        if not any(path.is_relative_to(part) for part in DOOR)
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_types_are_shipped_with_the_package() -> None:
    assert (PACKAGE / "py.typed").is_file()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["medfl"]


def test_starting_files_are_shipped_with_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (pattern,) = [
        pattern
        for pattern in project["tool"]["setuptools"]["package-data"]["medfl"]
        if pattern.endswith(".safetensors")
    ]
    assert set(PACKAGE.glob(pattern)) == set(PACKAGE.rglob("*.safetensors"))
    assert PACKAGE / Path(pattern).parent == shipped_starts.FOLDER


def test_texts_and_fonts_of_the_report_are_shipped_with_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["medfl"]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    for pattern in ("*.po", "*.otf", "OFL.txt", "*.j2", "*.schema.json"):
        needed = set(PACKAGE.rglob(pattern))
        assert needed, pattern
        assert needed <= shipped


def test_package_never_prints() -> None:
    result = run("-m", "ruff", "check", "--select", "T20", "--ignore-noqa", "medfl")
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_medfl_imports_the_standard_library_only() -> None:
    foreign = imported_by("medfl") - imported_by("sys") - sys.stdlib_module_names
    assert foreign == {"medfl"}


@pytest.mark.parametrize("module", ["medfl.config", "medfl.errors"])
def test_reading_a_configuration_imports_no_heavy_library(module: str) -> None:
    assert imported_by(module) & HEAVY == set()


@pytest.mark.parametrize(
    "launcher", ["coordinator.server", "hospital.site_node", "hospital.supernode"]
)
def test_what_runs_for_months_and_computes_nothing_imports_no_torch(launcher: str) -> None:
    found = imported_by(f"medfl.deployment.{launcher}")
    assert found & {"torch", "monai", "opacus", "dp_accounting"} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_module_is_short_enough_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_version_is_stated_once() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == medfl.__version__
