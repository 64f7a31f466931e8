"""Opacus' Rényi formulas without the rest of Opacus.

The module is NumPy and SciPy alone, but importing it by name runs Opacus' `__init__`, which imports
torch: two seconds and more for every command that only reads a ledger.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def renyi_formulas() -> ModuleType:
    """`opacus.accountants.analysis.rdp`, from the file of the installed Opacus.

    Raises:
        ImportError: If Opacus is not installed, or keeps the formulas elsewhere.
    """
    package = importlib.util.find_spec("opacus")  # found, not imported
    if package is None or package.origin is None:
        raise ImportError("Expected Opacus to be installed, found no such package.")
    path = Path(package.origin).with_name("accountants") / "analysis" / "rdp.py"
    found = importlib.util.spec_from_file_location("medfl_opacus_rdp", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path}: expected Opacus' Rényi formulas, found none.")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
