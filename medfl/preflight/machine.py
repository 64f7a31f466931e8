"""What a study takes of a machine, roughly, against what the machine has.

Estimates come from the cohort's headers, before anything is prepared; where a study is named, its
frame and network replace the assumptions. They are meant to find a machine that cannot work, not to
size one: the dry run measures.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfl.config import SiteConfig, StudyConfig
from medfl.data.cohort import Case
from medfl.data.layouts.survey import survey_cohort
from medfl.data.nifti.headers import FileFaults, read_header
from medfl.errors import ConfigError, MedflError
from medfl.findings import Finding, Severity
from medfl.segmentation.devices import device_named
from medfl.site.state import SiteState

OUTBOX_BYTES = 500_000_000
"""Updates without a study to tell: 100 rounds of a network with 1.2 million parameters."""

STEP_BYTES = 1_000_000_000
"""Memory of a step without a study to tell."""

# Interpreter and libraries, and the prepared cases that a `PatientStore` keeps in memory.
_PROCESS_BYTES = 1_000_000_000
# A scan, its resampled copy and the stacked one exist together while a case is prepared.
_COPIES = 3
# Float32 each: weights, gradient, clipped sum, noise, and an optimizer's two moments.
_BYTES_PER_PARAMETER = 24
# A SegResNet of 178 k parameters took 1,600 and 1,300 bytes a voxel of its crops (32^3 and 48^3).
_BYTES_PER_CROP_VOXEL = 2000
# At most 20,000 centres of each kind, in four bytes.
_CENTRES_BYTES = 160_000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is.

    Attributes:
        cores: CPU cores that this process may use.
        memory_bytes: Memory of the machine, or of the container if that has less.
        available_bytes: The part of it that is not in use now.
        free_disk_bytes: Free on the disk of the state folder.
    """

    cores: int
    memory_bytes: int
    available_bytes: int
    free_disk_bytes: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """What is needed, roughly.

    Attributes:
        disk_bytes: Cache and outbox, beyond what the cache holds already.
        memory_bytes: One training process.
    """

    disk_bytes: int
    memory_bytes: int


def nearest_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    # Not `Path.exists`, which raises where a folder above may not be searched.
    return next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))


def this_machine(folder: Path) -> Machine:
    """What this machine has.

    Args:
        folder: On the disk that counts; it may be missing.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = int(min(memory, _container_limit()))
    return Machine(
        cores=allowed_cores(),
        memory_bytes=memory,
        available_bytes=min(memory, _available(memory)),
        free_disk_bytes=shutil.disk_usage(nearest_existing(folder)).free,
    )


def need_of(site_state: SiteState, study: StudyConfig | None) -> Need:
    """What one training process of a site needs.

    Args:
        site_state: The site; the headers of its images are read.
        study: Its frame, crops and network; without one, scans at their own spacing in all of the
            site's modalities, `OUTBOX_BYTES` and `STEP_BYTES`.
    """
    site = site_state.site
    modalities = len(study.input.modalities if study else site.data.modalities)
    cases = [case for p in survey_cohort(site.data).patients for case in p.cases]
    voxels = _voxels(cases, study)
    # As the cache keeps a case: half precision, and all regions in one byte.
    cached = sum(count * (2 * modalities + 1) + _CENTRES_BYTES for count in voxels)
    held = sum(path.stat().st_size for path in (site.state / "cache").glob("*.case"))
    outbox, step = OUTBOX_BYTES, STEP_BYTES
    if study is not None:
        parameters = _parameters(site_state, study)
        outbox = 4 * parameters * study.training.rounds
        crops = study.input.crops_per_patient * math.prod(study.input.crop_size)
        step = parameters * _BYTES_PER_PARAMETER + crops * _BYTES_PER_CROP_VOXEL
    if site.purpose == "open-data":
        outbox = 0  # it lies in the run folder
    case = max(voxels, default=0) * 4 * (modalities + 1) * _COPIES
    return Need(
        disk_bytes=max(0, cached - held) + outbox, memory_bytes=_PROCESS_BYTES + case + step
    )


def check_machine(site_state: SiteState, *, machine: Machine, need: Need) -> list[Finding]:
    """Compare disk, memory, threads and device with what a site needs and asks for."""
    return list(_findings(site_state, machine=machine, need=need))


def _findings(site_state: SiteState, *, machine: Machine, need: Need) -> Iterator[Finding]:
    site = site_state.site
    if machine.free_disk_bytes < need.disk_bytes:
        yield _finding(
            "error",
            str(site.state),
            rule=f"about {_gb(need.disk_bytes)} free for prepared patients and stored updates",
            value=_gb(machine.free_disk_bytes),
            fix="Free space, or move the state folder to a larger disk with its ledger and keys.",
        )
    if machine.available_bytes < need.memory_bytes:
        never = machine.memory_bytes < need.memory_bytes
        yield _finding(
            "error" if never else "warning",
            "memory",
            rule=f"about {_gb(need.memory_bytes)} for one training process",
            value=f"{_gb(machine.available_bytes)} available of {_gb(machine.memory_bytes)}",
            fix="Give the machine or container more memory."
            if never
            else "End other programs before a study; `--study` shows what it really takes.",
        )
    if site.threads > machine.cores:
        yield _finding(
            "warning",
            "threads",
            rule=f"at most {machine.cores} threads, one for each core",
            value=str(site.threads),
            fix=f"Set threads = {machine.cores}; more only wait for each other.",
        )
    if site.device == "cpu":  # always there, and a check of it needs no torch
        return
    try:
        device_named(site.device, where="device")
    except ConfigError as error:
        yield _finding(
            "error",
            "device",
            rule="a device of this machine",
            value=str(error),
            fix='Install the driver and the CUDA build of torch, or set device = "cpu".',
        )


def resources(site: SiteConfig, *, machine: Machine) -> str:
    """What one training process of a site gets of this machine, in a sentence."""
    text = f"{site.name} trains with {site.threads} of {machine.cores} cores"
    if site.device == "cpu":
        return f"{text} and {_gb(machine.available_bytes)} of memory, without a GPU."
    try:
        device = device_named(site.device, where="device")
    except ConfigError:  # a finding of its own
        return f"{text}."
    import torch

    gpu = torch.cuda.get_device_properties(device)
    return (
        f"{text} and {_gb(gpu.total_memory)} of {gpu.name}. A simulation on Ray shares the "
        f"{torch.cuda.device_count()} GPUs of this machine evenly among the sites that work at "
        "once, and says so when it starts."
    )


def _finding(severity: Severity, name: str, *, rule: str, value: str, fix: str) -> Finding:
    return Finding(
        severity=severity, patient="", name=name, rule=rule, value=value, fix=fix, names=True
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _voxels(cases: Sequence[Case], study: StudyConfig | None) -> list[int]:
    """Voxels of each case in the study's frame; a faulty file is a finding of its own."""
    counts = []
    for case in cases:
        try:
            header = read_header(next(iter(case.images.values())), volumes=case.volumes)
        except (FileFaults, StopIteration):
            continue
        count = math.prod(header.shape)
        if study is not None and study.input.spacing != "native":
            volume_mm3 = abs(float(np.linalg.det(header.affine[:3, :3]))) * count
            count = math.ceil(volume_mm3 / math.prod(study.input.spacing))
        counts.append(count)
    return counts


def _parameters(site_state: SiteState, study: StudyConfig) -> int:
    """Trainable parameters; a network that cannot be built is what the dry run names."""
    try:
        network = site_state.network(study)
    except MedflError:
        return 0
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def allowed_cores() -> int:
    """Cores that this process may use, by its affinity and by the container's share of time."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.floor(min(allowed, _container_cores())))


def _container_cores() -> float:
    """Core seconds a second of the container that this process is in; infinite without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no control groups, or the word "max"
        return math.inf


def _container_limit() -> float:
    """Memory limit of the container that this process is in; infinite where there is none."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no control groups, or the word "max"
        return math.inf


def _available(memory: int) -> int:
    """Memory that new programs can have, in bytes; all of it where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return memory
    found = [line for line in lines if line.startswith("MemAvailable:")]
    return int(found[0].split()[1]) * 1024 if found else memory
