"""The starting files that come with medfl, so that a study starts well without a pretraining.

Each is a file of `medfl pretrain` under the name by which studies call it. The study in
`site_configs/` that names it says how it was made, and makes it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfl.errors import ModelError
from medfl.segmentation.model_file import ModelSpec, read_model, read_provenance

FOLDER = Path(__file__).with_name("starts")
MAX_BYTES = 3_000_000
"""Of one file: everybody who installs medfl carries them all."""


@dataclass(frozen=True, kw_only=True)
class ShippedStart:
    """One of the files.

    Attributes:
        name: By which a study calls it.
        sha256: Of its content.
        spec: What its model takes and gives.
        provenance: What the file says of how it was made.
    """

    name: str
    sha256: str
    spec: ModelSpec
    provenance: Mapping[str, Any]


def shipped_starts() -> tuple[ShippedStart, ...]:
    """All of them, by name.

    Raises:
        ModelError: If a file of the installation is damaged.
    """
    return tuple(_read(name) for name in _names())


def shipped_file(name: str) -> Path:
    """The file that medfl ships under a name.

    Raises:
        ModelError: If it ships none.
    """
    if name not in _names():
        there = ", ".join(_names()) or "none at all"
        raise ModelError(
            f"[synthetic] start: expected the name of a start that this medfl ships ({there}), "
            f"found {name!r}. `medfl starts` describes them."
        )
    return _path(name)


def _names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def _path(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def _read(name: str) -> ShippedStart:
    path = _path(name)
    spec, _ = read_model(path)
    return ShippedStart(
        name=name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        spec=spec,
        provenance=read_provenance(path),
    )
