"""How the recipes are imported, which are no package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a recipe by the name of its file, as its neighbours do."""
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module
