"""Plugin of pytest: plants the bug that an environment variable names before tests are collected.

MEDFL_PLANTED_BUG='no noise' PYTHONPATH=pipelines pytest -p bugs.plugin -x -q tests/privacy
"""

from __future__ import annotations

import os

from bugs import NONE, plant

VARIABLE = "MEDFL_PLANTED_BUG"

plant(os.environ.get(VARIABLE, NONE))
