"""The benchmark compares like with like, and writes what it measured."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from medfl.segmentation.losses import patient_loss

PIPELINES = Path(__file__).parents[2] / "pipelines"
CROP = 8


@pytest.fixture(scope="module")
def step_cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("step_cost", PIPELINES / "step_cost.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_network_without_in_place_operations_computes_the_same(step_cost: ModuleType) -> None:
    original, copy = step_cost.network(CROP), step_cost.without_in_place_operations(CROP)
    images, regions = (tensor[0] for tensor in step_cost.crops_of_patients(CROP))
    for model in (original, copy):
        patient_loss(model(images), regions).backward()
    for one, other in zip(original.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.grad, other.grad)


def test_crop_loss_is_the_patient_loss_of_every_crop_by_itself(step_cost: ModuleType) -> None:
    images, regions = (tensor[0] for tensor in step_cost.crops_of_patients(CROP))
    logits = images[:, : step_cost.REGIONS]
    apart = [patient_loss(logits[k : k + 1], regions[k : k + 1]) for k in range(len(logits))]
    loss = step_cost.CropLoss()
    torch.testing.assert_close(loss(logits, regions), torch.stack(apart).mean())
    loss.reduction = "none"
    torch.testing.assert_close(loss(logits, regions), torch.stack(apart))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(
    "way", ["plain_batch", "plain_grouped", "patient_engine", "opacus_hooks", "opacus_ghost"]
)
def test_every_way_takes_a_step(
    step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    built: list[torch.nn.Module] = []

    def remember(crop: int, **arguments: object) -> torch.nn.Module:
        built.append(network(crop, **arguments))
        return built[-1]

    network = step_cost.network
    monkeypatch.setattr(step_cost, "network", remember)
    step = step_cost.WAYS[way](CROP)
    step()
    (model,) = built
    pairs = list(zip(network(CROP).parameters(), model.parameters(), strict=True))
    assert all(torch.isfinite(after).all() for _, after in pairs)
    assert not all(torch.equal(before, after) for before, after in pairs)


def test_measurement_times_at_least_three_steps(
    step_cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setitem(step_cost.WAYS, "nothing", lambda crop: lambda: calls.append(crop))
    found = step_cost.measure("nothing", crop=CROP, timed_seconds=1e-9)
    assert found["steps"] == 3
    assert calls == [CROP] * 4  # the first one is not timed


@pytest.mark.slow
def test_benchmark_writes_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, str(PIPELINES / "benchmark.py"), "step", "--quick", "--crop", "8"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Noise share" in done.stdout
    steps = json.loads((tmp_path / "benchmark.json").read_text())["steps"]
    assert len(steps) == 6
    assert all(entry["seconds"] > 0 for entry in steps)
    assert (tmp_path / "benchmark.png").stat().st_size > 0


@pytest.mark.slow
def test_benchmark_sets_sites_side_by_side_beside_one_after_the_other() -> None:
    command = [sys.executable, str(PIPELINES / "benchmark.py"), "sites", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for at_once in (1, 2):
        assert re.search(rf" {at_once} .*\d\.\d\d.*\d\.\d\d.*\d\.\d\d", done.stdout)


@pytest.mark.slow
def test_benchmark_sets_threads_that_sleep_beside_threads_that_spin() -> None:
    command = [sys.executable, str(PIPELINES / "benchmark.py"), "waiting", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for label in ("spin", "sleep"):
        assert re.search(rf"{label}.*\d\.\d\d.*\d\.\d\d.*\d\.\d\d", done.stdout)
