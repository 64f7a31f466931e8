"""A tiny federation with everything that could tie one patient to another.

Its network has dropout, its study empties channels at random, its patients have up to two cases,
and its sites differ in size. `sensitivity_on_path` runs on it where no study is at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.phantom.hospitals import write_hospitals

SCANS = (8, 5, 1, 1)  # the last two hospitals are not used

_SHAPE, _SPACING = (20, 20, 14), (9.0, 9.0, 11.4)
_STUDY: dict[str, Any] = {
    "id": "path-audit",
    "input": {
        "modalities": ["t1c", "t2f"],
        "regions": ["WT"],
        "crop_size": [8, 8, 8],
        "missing_modality": "zero-fill",
        "modality_dropout": 0.3,
    },
    "network": {
        "name": "SegResNet",
        "arguments": {
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
            "dropout_prob": 0.2,
        },
    },
    "privacy": {"epsilon": 4.0, "sampling_prob": 0.5},
    "training": {"rounds": 8, "local_steps": 2, "optimizer": "sgd", "learning_rate": 0.1},
    "aggregation": {"strategy": "fedavg", "min_sites": 1},
    "evaluation": {"every": 8, "pictures": 0},
}
# A folder is one case of a patient.
_CASE, _MASK = r"(?P<patient>person\d+)_\d", "{case}/*_seg"
_COMPLETE = {"t1c": "{case}/*_t1ce", "t2f": "{case}/*_flair"}
_INCOMPLETE = {"t2f": "{case}/*_flair"}


def path_federation(folder: Path) -> tuple[StudyConfig, list[SiteConfig]]:
    """Write two tiny synthetic hospitals, of 5 and 4 patients; the second lacks a modality.

    Args:
        folder: A new or empty folder for their files.

    Raises:
        DataError: If the folder holds files.
    """
    files = write_hospitals(
        folder,
        patients=SCANS,
        shape=_SHAPE,
        spacing=_SPACING,
        skull_stripped=True,
        seed=23,
        on_patient=lambda: None,
    )
    sites: list[SiteConfig] = []
    for file, patients in zip(files[:2], (5, 4), strict=True):
        for number, case in enumerate(sorted((folder / file.stem).iterdir())):
            case.rename(case.with_name(f"person{number % patients}_{number // patients}"))
        sites.append(_site(load_site(file), patients=patients, complete=not sites))
    return StudyConfig.model_validate_json(json.dumps(_STUDY)), sites


def _site(site: SiteConfig, *, patients: int, complete: bool) -> SiteConfig:
    """The site's file for several cases a patient; nobody is held out."""
    values = site.model_dump(mode="json")
    images = _COMPLETE if complete else _INCOMPLETE
    values |= {"threads": 1, "declared_patients": patients}
    values["data"] |= {
        "layout": "custom",
        "custom": {"case": _CASE, "images": images, "mask": _MASK},
        "modalities": list(images),
        "held_out": 0.0,
    }
    return SiteConfig.model_validate_json(json.dumps(values))
