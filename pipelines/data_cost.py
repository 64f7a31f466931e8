"""What reading costs: the preflight of many cases, and the wait for data in training.

    python pipelines/data_cost.py preflight CASES
    python pipelines/data_cost.py reading
    python pipelines/data_cost.py memory CASES

Run by `benchmark.py data` in a process of its own; prints one JSON line. `preflight` checks small
cases of which one has each of the faults in `planted_faults.py`. `reading` trains on a hospital of
the LGG cohort, if `MEDFL_REAL_DATA` names it, and on synthetic patients of the same size otherwise.
`memory` checks cases of 240 x 240 x 155 x 4 voxels and trains on each of them once; it takes 8 MB
of disk a case.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from full_size_cases import DISTINCT
from planted_faults import CASE_FAULTS

from medfl.config import SiteConfig, load_site, load_study
from medfl.config.open_data_site import open_data_site
from medfl.config.site import MODALITY_ORDER
from medfl.data.checks import check_cohort
from medfl.data.crops import draw_crops
from medfl.phantom.patient import hospital_looks, write_hospital
from medfl.protocol.study_model import model_spec
from medfl.segmentation.losses import patient_loss
from medfl.site.state import CACHE, SiteState

SHAPE = (16, 20, 12)
STEPS = 40
PATIENTS_A_STEP = 8
REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = REPOSITORY / "site_configs" / "demo" / "study.toml"


def main() -> None:
    """Measure what the first argument names."""
    part, *numbers = sys.argv[1:]
    if part in _OF_FULL_SIZE:
        line = _OF_FULL_SIZE[part](Path(numbers[0]), int(numbers[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parts = {"preflight": preflight, "reading": reading, "memory": memory}
            line = parts[part](folder, *map(int, numbers))
    sys.stdout.write(json.dumps(line) + "\n")


def preflight(folder: Path, cases: int) -> dict[str, Any]:
    """Seconds and memory of a check of many small cases."""
    root = folder / "site"
    for number in range(cases):
        _write_case(root, number)
    for number, damage in enumerate(CASE_FAULTS.values()):
        damage(root / _name(number))
    site = _site(folder, root=root, patients=cases)
    before = _peak_bytes()
    begin = time.monotonic()
    findings = check_cohort(site)
    seconds = time.monotonic() - begin
    planted = [_name(number) for number in range(len(CASE_FAULTS))]
    texts = [f"{finding.patient} {finding.name} {finding.value}" for finding in findings]
    return {
        "cases": cases,
        "seconds": seconds,
        "peak_bytes": _peak_bytes() - before,
        "planted": len(planted),
        "found": sum(any(name in text for text in texts) for name in planted),
        "unplanted": sum(not any(name in text for name in planted) for text in texts),
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
    site_state = SiteState(site, folder=folder / "run")
    store, _ = site_state.stores(study)
    begin = time.monotonic()
    for index in range(len(store)):
        store.prepared(index)
    prepared = time.monotonic() - begin
    # A fresh store, so that the first look at a patient comes from the disk as in a new round.
    store, _ = SiteState(site, folder=folder / "run").stores(study)
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


def memory(folder: Path, cases: int) -> dict[str, Any]:
    """Peak memory of a check of full-size cases and of training, each in a process of its own."""
    _run("full_size_cases.py", str(folder / "site"), str(cases))
    parts = {
        part: json.loads(_run("data_cost.py", part, str(folder), str(cases)))
        for part in _OF_FULL_SIZE
    }
    return {"cases": cases, **parts}


def _checked(folder: Path, cases: int) -> dict[str, Any]:
    site = _site(folder, root=folder / "site", patients=cases)
    before, begin = _peak_bytes(), time.monotonic()
    findings = check_cohort(site)
    return {
        "seconds": time.monotonic() - begin,
        "peak_bytes": _peak_bytes() - before,
        "findings": len(findings),
        "threads": site.threads,
    }


def _prepared(folder: Path, cases: int) -> dict[str, Any]:
    """The distinct cases, prepared; the others' entries of the cache are links to theirs."""
    site = _site(folder, root=folder / "site", patients=cases)
    site_state = SiteState(site, folder=folder / "run")
    store, _ = site_state.stores(load_study(STUDY))
    before, begin = _peak_bytes(), time.monotonic()
    for index in range(DISTINCT):
        store.fill(index)
    seconds, peak = time.monotonic() - begin, _peak_bytes() - before
    # What an entry is called is the store's own business; to prepare hundreds would take an hour.
    keys = [store._key(patient.cases[0]) for patient in site_state.patients.training]
    for number in range(DISTINCT, cases):
        for entry in (site.state / CACHE).glob(f"{keys[number % DISTINCT]}.*"):
            entry.with_name(f"{keys[number]}{entry.suffix}").hardlink_to(entry)
    return {"seconds_a_case": seconds / DISTINCT, "peak_bytes": peak}


def _trained(folder: Path, cases: int) -> dict[str, Any]:
    """Every patient once through a network, read from a cache that holds all of them."""
    study = load_study(STUDY)
    site = _site(folder, root=folder / "site", patients=cases)
    store, _ = SiteState(site, folder=folder / "run").stores(study)
    network = model_spec(study).build(seed=0)
    generator = torch.Generator().manual_seed(0)
    before, begin = _peak_bytes(), time.monotonic()
    store.verify()
    verified = time.monotonic() - begin
    for index in range(cases):
        images, regions = draw_crops(
            store.prepared(index),
            crop_size=study.input.crop_size,
            count=study.input.crops_per_patient,
            generator=generator,
        )
        patient_loss(network(images), regions).backward()
    return {
        "seconds": time.monotonic() - begin,
        "verify_seconds": verified,
        "peak_bytes": _peak_bytes() - before,
    }


# Each in a process of its own, since a peak covers all that a process has done before.
_OF_FULL_SIZE: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "check": _checked,
    "prepare": _prepared,
    "train": _trained,
}


def _run(script: str, *arguments: str) -> str:
    """Run a script beside this one and return what it prints."""
    child = subprocess.run(  # noqa: S603
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return child.stdout


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


def _peak_bytes() -> int:
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
