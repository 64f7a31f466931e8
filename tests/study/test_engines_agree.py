"""Flower's simulation runtime and this process run the same apps to the same model, bit by bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

STUDY = """
id = "tiny"
[input]
modalities = ["t1c", "t2f"]
regions = ["WT", "ET"]
crop_size = [16, 16, 16]
[network]
name = "SegResNet"
arguments = { init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }
[privacy]
epsilon = 8.0
sampling_prob = 0.5
noise = "seeded"
[training]
rounds = 2
local_steps = 1
optimizer = "sgd"
learning_rate = 0.5
[aggregation]
strategy = "fedadam"
server_learning_rate = 1e-3
ema_decay = 0.5
min_sites = 2
[evaluation]
every = 2
pictures = 0
"""
SITES = ("east", "south")
GRACE_SECONDS = 20
MEDFL = Path(sys.executable).with_name("medfl")


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A short path, since Ray's sockets have to fit into 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def site_files(files: dict[str, Path], folder: Path) -> list[Path]:
    """The site files with one thread, beside their hospitals' folders."""
    copies = []
    for name in SITES:
        text = files[name].read_text().replace("threads = 2", "threads = 1")
        text = text.replace(f'root = "{name}"', f'root = "{files[name].parent / name}"')
        text = text.replace(f'state = "state/{name}"', f'state = "{folder / "state" / name}"')
        copies.append(folder / f"{name}.toml")
        copies[-1].write_text(text)
    return copies


def marked(mark: str) -> list[int]:
    """Processes that carry a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MEDFL_TEST_MARK") == mark:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("trust", ["local", "secure"])
def test_both_engines_make_the_same_model_and_ray_ends_its_processes(
    trust: str, hospital_files: dict[str, Path], tmp_path: Path, ray_folder: Path
) -> None:
    text = STUDY.replace("[training]", f'trust = "{trust}"\n[training]')
    (tmp_path / "study.toml").write_text(text)
    sites = site_files(hospital_files, tmp_path)
    mark = uuid.uuid4().hex
    environment: dict[str, Any] = {
        **os.environ,
        "MEDFL_TEST_MARK": mark,
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(ray_folder),
    }
    for engine in ("inprocess", "ray"):
        command = [MEDFL, "simulate", tmp_path / "study.toml", *sites]
        result = subprocess.run(
            [*command, "--engine", engine, "--out", tmp_path / engine],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert "Traceback" not in result.stderr
    for name in ("initial", "round-0002", "final"):
        one, other = (
            load_file(tmp_path / engine / "checkpoints" / f"{name}.safetensors")
            for engine in ("inprocess", "ray")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    tables = [
        sorted((tmp_path / engine / "metrics.csv").read_text().splitlines())
        for engine in ("inprocess", "ray")
    ]
    assert tables[0] == tables[1]
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
