"""The table of sizes: its columns and rows are those of the program that measures them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from medfl.config import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sizing(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("sizing")


def test_the_page_shows_what_is_measured(sizing: ModuleType) -> None:
    page = (ROOT / "site_configs" / "OPERATIONS.md").read_text(encoding="utf-8")
    section = page[page.index("\n## Sizes\n") :]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    head, _, *measured = rows[: 2 + len(sizing.SIZES)]
    assert tuple(head) == sizing.COLUMNS
    assert [row[0] for row in measured] == [label for label, _ in sizing.SIZES.values()]
    assert all(float(cell) > 0 for row in measured for cell in row[1:])


@pytest.mark.parametrize("name", ["small", "brats"])
def test_what_is_played_is_a_study(name: str, sizing: ModuleType, tmp_path: Path) -> None:
    label, scene = sizing.SIZES[name]
    file = tmp_path / "study.toml"
    text = scene.study.format(trust='trust = "local"', rounds=scene.rounds, hospitals=2)
    file.write_text(text, encoding="utf-8")
    study = load_study(file)
    assert f"crops of {study.input.crop_size[0]}^3" in label
    assert " x ".join(map(str, scene.shape)) in label


def test_a_size_that_there_is_not_is_refused(sizing: ModuleType) -> None:
    done = CliRunner().invoke(sizing.app, ["--size", "huge"])
    assert done.exit_code == 2
    assert "'huge'" in done.output
