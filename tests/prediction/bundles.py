"""Finished runs as far as a bundle looks at them, and bundles at work within the tests' process."""

from __future__ import annotations

import gzip
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from monai.bundle import run

from medfl.prediction.carried_code import SCRIPTS
from medfl.runs.files import FINAL_MODEL
from medfl.segmentation.model_file import ModelSpec
from tests.prediction.conftest import SPEC, write_model

PRIVACY = [
    {"site": "north", "epsilon_pld": 7.9954, "delta": 1e-5, "budget": 10.0, "revision": 2},
    {"site": "west", "epsilon_pld": 3.2, "delta": 1e-6, "budget": 4.0, "revision": 2},
]


def finished_run(folder: Path, *, spec: ModelSpec = SPEC, missing: str = "refuse") -> Path:
    """A run folder with a model of random weights."""
    write_model(folder / FINAL_MODEL, spec=spec, missing=missing)
    (folder / "study.json").write_text(json.dumps({"id": "first", "training": {"rounds": 30}}))
    (folder / "privacy.json").write_text(json.dumps(PRIVACY))
    return folder


def run_bundle(bundle: Path, datalist: Any, *, out: Path, **override: Any) -> str:
    """Run a bundle as MONAI does; what it ended with, nothing if all went well."""
    path = list(sys.path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="parsing config_file")  # MONAI, of any bundle
            run(
                config_file=str(bundle / "configs" / "inference.json"),
                bundle_root=str(bundle),
                datalist=datalist,
                output_dir=str(out),
                **override,
            )
    except SystemExit as end:
        return str(end)
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.split(".")[0] == SCRIPTS]:
            del sys.modules[name]
    return ""


def content(path: Path) -> bytes:
    """All bytes of a mask, header and voxels; a gzip file's own header holds the time."""
    return gzip.decompress(path.read_bytes())
