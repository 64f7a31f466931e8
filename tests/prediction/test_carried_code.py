"""A bundle's code is medfl's own, and needs nothing of medfl to run."""

from __future__ import annotations

import ast
import sys
from pathlib import Path, PurePosixPath

from medfl.prediction import bundle_script
from medfl.prediction.carried_code import SCRIPTS, carried_code

PACKAGE = Path(bundle_script.__file__).parents[1]
CODE = carried_code(bundle_script.__name__)
MODULES = {path: text for path, text in CODE.items() if path.name != "__init__.py"}
ALLOWED = {"monai", "nibabel", "numpy", "torch"}


def imported(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def test_every_line_but_the_imports_is_medfl_s_own() -> None:
    for path, text in MODULES.items():
        home = (PACKAGE / path.relative_to(SCRIPTS)).read_text(encoding="utf-8")
        assert text.replace(f"from {SCRIPTS}.", "from medfl.") == home


def test_whatever_it_imports_comes_along_or_is_what_bundles_may_need() -> None:
    for text in MODULES.values():
        for name in imported(text):
            first, *others = name.split(".")
            if first == SCRIPTS:
                assert PurePosixPath(first, *others).with_suffix(".py") in MODULES
            else:
                assert first in sys.stdlib_module_names | ALLOWED


def test_the_reader_and_the_writer_of_masks_are_among_it() -> None:
    names = {str(path.relative_to(SCRIPTS)) for path in MODULES}
    assert {"data/nifti/headers.py", "data/nifti/faults.py", "prediction/mask_file.py"} <= names
    for path in MODULES:
        for folder in path.parents[:-1]:
            assert "Apache-2.0" in CODE[folder / "__init__.py"]
