"""Runs as a server of hospitals leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.governance.runs import begun_by


@pytest.fixture
def deployed_run(build_run: Callable[..., Path]) -> Callable[..., Path]:
    """Builds the folder of a run of hospitals that nothing stands against."""

    def build(**options: Any) -> Path:
        folder = build_run(**{"purpose": "hospital", "metrics": False, "pictures": 0} | options)
        return begun_by(folder, "medfl server run /srv/medfl study.toml --out run")

    return build
