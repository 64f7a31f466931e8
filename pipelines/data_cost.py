"""What reading costs: the preflight of many cases, and the wait for data in training.

    python pipelines/data_cost.py preflight CASES
    python pipelines/data_cost.py reading

Run by `benchmark.py data` in a process of its own; prints one JSON line. `preflight` checks small
cases of which twelve are broken, each in another way. `reading` trains on a hospital of the LGG
cohort, if `MEDFL_REAL_DATA` names it, and on synthetic patients of the same size otherwise.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from medfl.config import SiteConfig, load_site, load_study
from medfl.config.open_data_site import open_data_site
from medfl.config.site import MODALITY_ORDER
from medfl.data.checks import check_cohort
from medfl.data.crops import draw_crops
from medfl.data.phantom import hospital_looks, write_hospital
from medfl.federation.study_model import model_spec
from medfl.federation.workplace import Workplace
from medfl.segmentation.losses import patient_loss

SHAPE = (16, 20, 12)
STEPS = 40
PATIENTS_A_STEP = 8
REPOSITORY = Path(__file__).resolve().parents[1]

# Offsets of NIfTI-1 header fields, in bytes.
_DIM, _PIXDIM, _SLOPE, _SROW = 40, 76, 112, 280


def main() -> None:
    """Measure what the first argument names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = sys.argv[1]
        line = preflight(folder, int(sys.argv[2])) if part == "preflight" else reading(folder)
    sys.stdout.write(json.dumps(line) + "\n")


def preflight(folder: Path, cases: int) -> dict[str, Any]:
    """Seconds and memory of a check of many small cases."""
    root = folder / "site"
    for number in range(cases):
        _write_case(root, number)
    for number, damage in enumerate(_FAULTS):
        damage(root / _name(number))
    site = _site(folder, root=root, patients=cases)
    before = _peak_bytes()
    begin = time.monotonic()
    findings = check_cohort(site)
    return {
        "cases": cases,
        "seconds": time.monotonic() - begin,
        "peak_bytes": _peak_bytes() - before,
        "broken": len({finding.patient for finding in findings if finding.patient}),
        "threads": site.threads,
    }


def reading(folder: Path) -> dict[str, Any]:
    """How much of a step goes into waiting for prepared patients and crops."""
    study = load_study(REPOSITORY / "site_configs" / "lgg" / "study.toml")
    real = bool(os.environ.get("MEDFL_REAL_DATA"))
    if real:
        site = load_site(REPOSITORY / "site_configs" / "lgg" / "DU.toml")
        site = site.model_copy(update={"state": folder / "state"})
    else:
        write_hospital(
            folder / "site",
            patients=12,
            shape=(128, 128, 40),
            spacing=(1.9, 1.9, 3.75),
            look=next(iter(hospital_looks().values())),
            skull_stripped=False,
            seed=3,
            first_number=0,
            on_patient=lambda _: None,
        )
        site = _site(folder, root=folder / "site", patients=12)
    workplace = Workplace(site, folder=folder / "run")
    store, _ = workplace.stores(study)
    begin = time.monotonic()
    for index in range(len(store)):
        store.prepared(index)
    prepared = time.monotonic() - begin
    # A fresh store, so that the first look at a patient comes from the disk as in a new round.
    store, _ = Workplace(site, folder=folder / "run").stores(study)
    network = model_spec(study).build(seed=0)
    generator = torch.Generator().manual_seed(0)
    waiting, begin = 0.0, time.monotonic()
    for _ in range(STEPS):
        for index in torch.randint(len(store), (PATIENTS_A_STEP,), generator=generator).tolist():
            since = time.monotonic()
            images, regions = draw_crops(
                store.prepared(index),
                crop_size=study.input.crop_size,
                count=study.input.crops_per_patient,
                generator=generator,
            )
            waiting += time.monotonic() - since
            patient_loss(network(images), regions).backward()
    total = time.monotonic() - begin
    return {
        "patients": len(store),
        "real": real,
        "prepare_seconds_a_patient": prepared / len(store),
        "step_seconds": total / STEPS,
        "waiting_share": waiting / total,
        "threads": torch.get_num_threads(),
    }


def _write_case(root: Path, number: int) -> None:
    name = _name(number)
    folder = root / name
    folder.mkdir(parents=True)
    random = np.random.default_rng(number)
    for ending in ("t1", "t1ce", "t2", "flair"):
        _save(folder / f"{name}_{ending}.nii.gz", random.normal(100, 15, SHAPE).astype(np.float32))
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 5:12, 4:9] = 2
    mask[6:8, 6:10, 5:8] = 4
    _save(folder / f"{name}_seg.nii.gz", mask)


def _save(path: Path, voxels: Any) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), path)


def _name(number: int) -> str:
    return f"BraTS2021_{number:05}"


def _site(folder: Path, *, root: Path, patients: int) -> SiteConfig:
    text = open_data_site(
        "site",
        about="A cohort that belongs to nobody",
        root=str(root),
        layout="brats2021",
        label_scheme="brats",
        modalities=MODALITY_ORDER,
        patients=patients,
        held_out=0.0,
    )
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return load_site(folder / "site.toml")


def _field(offset: int, code: str, *values: float) -> Callable[[Path], None]:
    """A fault in the header of an image."""

    def damage(case: Path) -> None:
        path = case / f"{case.name}_t2.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(f"<{code}", content, offset, *values)
        path.write_bytes(gzip.compress(content))

    return damage


def _file(ending: str, content: bytes | None) -> Callable[[Path], None]:
    """Another content of a file; None removes it."""

    def damage(case: Path) -> None:
        path = case / f"{case.name}_{ending}.nii.gz"
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return damage


def _mask(value: int) -> Callable[[Path], None]:
    return lambda case: _save(case / f"{case.name}_seg.nii.gz", np.full(SHAPE, value, np.uint8))


_FAULTS: tuple[Callable[[Path], None], ...] = (
    _field(_DIM, "h", 4),
    _field(_DIM + 2, "3h", 32767, 32767, 32767),
    _field(_PIXDIM + 4, "f", 0.0),
    _field(_SLOPE, "f", float("inf")),
    _field(_SROW, "12f", *[0.0] * 12),
    _file("t1", b""),
    _file("t1", b"<html>Please log in</html>"),
    _file("flair", None),
    _file("seg", None),
    _file("t1ce", gzip.compress(bytes(400))),
    _mask(3),
    _mask(0),
)


def _peak_bytes() -> int:
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
