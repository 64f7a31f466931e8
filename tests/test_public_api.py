"""The public interface: what it names, and that notebooks and README need nothing else."""

from __future__ import annotations

import ast
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import medfl

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = [name for name in medfl.__all__ if name != "__version__"]


def names_for_type_checkers() -> set[str]:
    """What a type checker finds in the package, which never calls `__getattr__`."""
    tree = ast.parse(Path(medfl.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [
        node for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)
    ]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def parts_of_medfl(source: str) -> set[str]:
    """Every ``medfl.name`` in a text, and ``import from`` for an import of anything else."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medfl":
            found.add(f"import from {node.module}")
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("medfl.")}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} if node.value.id == "medfl" else set()
    return found


def test_a_type_checker_sees_what_a_program_gets() -> None:
    assert names_for_type_checkers() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_is(name: str) -> None:
    value = getattr(medfl, name)
    assert value.__name__ == name
    assert (inspect.getdoc(value) or "").strip()


def test_a_name_that_is_not_public_is_refused_as_in_any_module() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'run_whole_study'"):
        _ = medfl.run_whole_study  # type: ignore[attr-defined]


def test_names_are_offered_to_who_asks_for_them() -> None:
    assert set(medfl.__all__) <= set(dir(medfl))


def test_the_notebooks_need_nothing_else() -> None:
    sources = sorted((REPOSITORY / "notebooks").glob("*.py"))
    assert sources
    of_every_module = {"__file__"}
    for source in sources:
        needed = parts_of_medfl(source.read_text(encoding="utf-8")) - of_every_module
        assert needed <= set(medfl.__all__), source


def test_the_readme_needs_nothing_else() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert examples
    for example in examples:
        assert parts_of_medfl(example) <= set(medfl.__all__)


@pytest.mark.slow
def test_a_study_goes_from_files_to_a_report_without_a_word_of_flowers(
    federation: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("flwr").setLevel(logging.INFO)  # as Flower leaves it
    study, sites = federation.study(), federation.sites()
    plan = medfl.plan_study(study, sites)
    assert [at.site for at in plan.sites] == [site.name for site in sites]
    out = str(tmp_path / "run")
    summary = medfl.run_study(study, sites, out=out)
    results = medfl.read_run(out)
    assert summary.sites.keys() == results.privacy.keys() == {site.name for site in sites}
    assert medfl.write_report(out) == tmp_path / "run" / "report.html"
    assert "aggregate_train" not in "".join(capfd.readouterr())
