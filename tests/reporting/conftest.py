"""What tests of pages share."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium; a user may lack it, a machine that judges changes may not."""
    found = shutil.which("chromium")
    if found is None and os.environ.get("MEDFL_REQUIRE_BROWSER"):
        pytest.fail("Expected chromium, since MEDFL_REQUIRE_BROWSER is set, found none.")
    if found is None:
        pytest.skip("chromium is not installed")
    return found
