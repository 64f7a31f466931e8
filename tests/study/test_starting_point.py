"""A run may start from a file: bit-equal to its own pretraining, and with no patient in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medfl.config import StudyConfig, load_study
from medfl.deployment.coordinator import server_component
from medfl.deployment.coordinator.job import FOLDER_VARIABLE, ExpectedSite, Job
from medfl.errors import ConfigError, ModelError
from medfl.protocol.keys import SiteKeys
from medfl.segmentation.model_file import model_bytes, read_model, read_provenance
from medfl.segmentation.networks import trainable_state
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.site.state import hospital_state
from medfl.study import baselines
from medfl.study.in_process_grid import run_in_process
from medfl.study.pretraining import initial_weights
from medfl.study.run import run_study
from medfl.study.simulation import in_process_grid, prepare_folder, simulate
from medfl.study.starting_point import FILE, ORIGIN, first_weights, write_starting_point

MEDFL = Path(sys.executable).with_name("medfl")
SYNTHETIC: dict[str, Any] = {
    "shape": [20, 20, 16],
    "spacing": [9.0, 9.0, 10.0],
    "skull_stripped": True,
    "seed": 500,
    "pretraining_patients": 2,
    "pretraining_steps": 3,
}

Started = Callable[..., StudyConfig]


def unwatched(_done: int, _total: int) -> None:
    """Nobody looks."""


def write_file(study: StudyConfig, out: Path) -> str:
    return write_starting_point(study, out=out, threads=1, drawn=unwatched, advance=unwatched)


def start(file: Path) -> dict[str, str]:
    """What a study says of a file, true or not."""
    return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def first(study: StudyConfig, out: Path) -> dict[str, torch.Tensor]:
    """The first model of a new run."""
    prepare_folder(out, study=study, resume=False)
    return first_weights(study, out=out, threads=1, advance=unwatched)


@pytest.fixture(scope="module")
def file(shared_federation: Any) -> Path:
    """What `medfl pretrain` makes of the tiny study."""
    path: Path = shared_federation.scratch / "pretrained.safetensors"
    write_file(shared_federation.study(synthetic=SYNTHETIC), path)
    return path


@pytest.fixture
def started(federation: Any, file: Path) -> Started:
    """Makes the study start from the file, with some values replaced."""

    def make(*, path: Path = file, synthetic: Any = None, **changes: Any) -> StudyConfig:
        section = {**SYNTHETIC, "start": start(path), **(synthetic or {})}
        study: StudyConfig = federation.study(synthetic=section, **changes)
        return study

    return make


def simulated(federation: Any, study: StudyConfig, name: str) -> Path:
    """A whole run, whose draws and noise follow from the study's seed."""
    out: Path = federation.scratch / name
    prepare_folder(out, study=study, resume=False)
    RunFolder(out).begin(run="one-name", study=study)
    simulate(study, federation.sites(), out=out, engine="inprocess", progress=Silent())
    return out / "checkpoints"


@pytest.mark.slow
def test_a_run_from_the_file_is_bit_equal_to_one_that_pretrains(
    federation: Any, file: Path, started: Started
) -> None:
    own = simulated(federation, federation.study(synthetic=SYNTHETIC), "own")
    from_file = simulated(federation, started(), "from-file")
    assert same(load_file(own / "initial.safetensors"), load_file(file))
    for name in ("initial.safetensors", "final.safetensors"):
        assert same(load_file(from_file / name), load_file(own / name))
    random = simulated(federation, federation.study(), "random")
    assert not same(
        load_file(from_file / "initial.safetensors"), load_file(random / "initial.safetensors")
    )


def test_the_file_says_that_it_knows_no_patient(file: Path) -> None:
    provenance = read_provenance(file)
    assert provenance["origin"] == ORIGIN
    assert provenance["mechanisms"] == {}
    assert provenance["synthetic"] == {
        **SYNTHETIC,
        "variety": "narrow",
        "pretraining_learning_rate": 2e-3,
        "randomise": False,
        "ema_decay": 0.0,
        "public_steps": 0,
    }


def test_every_model_of_the_run_names_its_start(
    federation: Any, file: Path, started: Started
) -> None:
    checkpoints = simulated(federation, started(), "run")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_provenance(checkpoints / "final.safetensors")["start_sha256"] == digest
    study = json.loads((checkpoints.parent / "study.json").read_text())
    assert study["synthetic"]["start"] == {
        "file": "pretrained.safetensors",
        "shipped": None,
        "sha256": digest,
        "collections": [],
        "seen_sha256": None,
    }


def test_a_seed_of_the_study_may_differ_since_the_file_stands_for_it(
    file: Path, started: Started, tmp_path: Path
) -> None:
    assert same(first(started(seed=9), tmp_path / "run"), load_file(file))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "network": (
        {"network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}}},
        "the network of the study's model, 'UNet', found 'SegResNet'",
    ),
    "architecture": (
        {"network": {"arguments": {"init_filters": 16}}},
        "the arguments of the study's model",
    ),
    "modalities": (
        {"input": {"modalities": ["t1n", "t2f"]}},
        "the modalities of the study's model",
    ),
    "regions": ({"input": {"regions": ["TC", "WT"]}}, "the regions of the study's model"),
    "spacing": ({"input": {"spacing": [2.0, 2.0, 2.0]}}, "the spacing of the study's model"),
    "steps": (
        {"synthetic": {"pretraining_steps": 4}},
        "the pretraining_steps of the study's [synthetic], 4, found 3",
    ),
    "variety": (
        {"synthetic": {"variety": "wide"}},
        "the variety of the study's [synthetic], 'wide', found 'narrow'",
    ),
    "synthetic seed": ({"synthetic": {"seed": 501}}, "the seed of the study's [synthetic], 501"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_for_another_study_is_refused_before_anything_is_written(
    name: str, started: Started, tmp_path: Path
) -> None:
    changes, reason = OTHERS[name]
    with pytest.raises(ModelError) as caught:
        first(started(**changes), tmp_path / "run")
    assert reason in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_older_than_a_setting_was_made_without_it(
    file: Path, started: Started, tmp_path: Path
) -> None:
    spec, network = read_model(file)
    provenance = read_provenance(file)
    del provenance["synthetic"]["randomise"]
    older = tmp_path / "older.safetensors"
    older.write_bytes(model_bytes(trainable_state(network), spec=spec, provenance=provenance))
    assert same(first(started(path=older), tmp_path / "run"), load_file(file))
    with pytest.raises(ModelError, match=r"the randomise of the study's .*, True, found False"):
        first(started(path=older, synthetic={"randomise": True}), tmp_path / "other")


def test_a_model_that_was_trained_on_patients_is_refused(
    federation: Any, started: Started, tmp_path: Path
) -> None:
    model = (
        simulated(federation, federation.study(synthetic=SYNTHETIC), "run") / "final.safetensors"
    )
    with pytest.raises(ModelError, match="has spent their privacy, and no ledger"):
        first(started(path=model), tmp_path / "next")


def test_a_file_with_another_content_than_agreed_is_refused(
    federation: Any, file: Path, started: Started, tmp_path: Path
) -> None:
    path = tmp_path / "pretrained.safetensors"
    shutil.copy(file, path)
    study = started(path=path)
    path.unlink()
    write_file(federation.study(synthetic={**SYNTHETIC, "seed": 501}), path)
    with pytest.raises(ModelError, match="expected the file with SHA-256 "):
        first(study, tmp_path / "run")
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="expected a model of medfl"):
        first(study, tmp_path / "run")
    path.unlink()
    with pytest.raises(ModelError, match=r"expected the file that .* No such file"):
        first(study, tmp_path / "run")


def test_a_run_goes_on_from_the_file_it_began_with_and_from_no_other(
    federation: Any, file: Path, started: Started, tmp_path: Path
) -> None:
    path, out = tmp_path / "pretrained.safetensors", tmp_path / "run"
    shutil.copy(file, path)
    study = started(path=path)
    prepare_folder(out, study=study, resume=False)
    path.unlink()
    # Stopped before the first model: the run folder keeps what is needed.
    prepare_folder(out, study=study, resume=True)
    assert same(first_weights(study, out=out, threads=1, advance=unwatched), load_file(file))
    write_file(federation.study(seed=7, synthetic=SYNTHETIC), path)
    with pytest.raises(ConfigError, match="another study"):
        prepare_folder(out, study=started(path=path), resume=True)
    shutil.copy(path, out / FILE)
    with pytest.raises(ModelError, match="SHA-256"):
        first_weights(study, out=out, threads=1, advance=unwatched)


@pytest.mark.slow
def test_baselines_that_follow_need_the_file_no_more(
    federation: Any, file: Path, started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pretrained.safetensors"
    shutil.copy(file, path)
    study = started(path=path, evaluation={"baselines": ["non-private"]})
    sites = federation.sites(privacy={"share_metrics": True, "allow_baselines": True})

    def run(*, resume: bool) -> None:
        out, progress = tmp_path / "run", Silent()
        run_study(study, sites, out=out, engine="inprocess", resume=resume, progress=progress)

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(baselines, "simulate", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(resume=False)
    path.unlink()
    shutil.rmtree(tmp_path / "run" / "baselines")
    run(resume=True)
    there = tmp_path / "run" / "baselines" / "non-private" / "checkpoints"
    assert same(load_file(there / "initial.safetensors"), load_file(file))


@pytest.mark.slow
def test_a_deployed_server_starts_from_the_file_that_the_run_folder_keeps(
    federation: Any, started: Started, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = started(privacy={"noise": "operating-system"}, training={"rounds": 1}, seed=9)
    out, jobs = tmp_path / "run", tmp_path / "jobs"
    jobs.mkdir()
    prepare_folder(out, study=study, resume=False)
    sites = [federation.hospital(name) for name in ("east", "south")]
    expected = {
        site.name: ExpectedSite(node=node, event_key=SiteKeys.read(site.state / "keys").event_key)
        for node, site in enumerate(sites, start=2)
    }
    job = Job(run="first", study=study, out=out, sites=expected)
    assert str(file.parent) not in job.model_dump_json()
    assert Job.model_validate_json(job.model_dump_json()).study.digest == study.digest
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    grid = in_process_grid([hospital_state(site) for site in sites], progress=Silent())
    with job.posted(jobs, run=1):
        run_in_process(server_component.app, grid)
    assert same(load_file(out / "checkpoints" / "initial.safetensors"), load_file(file))
    assert len(RunFolder(out).rounds()) == 1


def test_where_the_file_lies_is_no_part_of_the_study(started: Started, tmp_path: Path) -> None:
    study = started()
    values = study.model_dump(mode="json")
    digests = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        path = folder / "study.toml"
        path.write_text(toml(values))
        loaded = load_study(path)
        assert loaded.synthetic is not None
        assert loaded.synthetic.start is not None
        assert loaded.synthetic.start.file == folder / "pretrained.safetensors"
        digests.add(loaded.digest)
    assert digests == {study.digest}


def toml(values: dict[str, Any]) -> str:
    """A study as a file: JSON's values in inline tables."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            inner = ", ".join(f"{k} = {inline(v)}" for k, v in value.items() if v is not None)
            return f"{{ {inner} }}"
        return json.dumps(value)

    said = {key: value for key, value in values.items() if value is not None}
    return "".join(f"{key} = {inline(value)}\n" for key, value in said.items())


def test_random_weights_cost_no_file(federation: Any, tmp_path: Path) -> None:
    study = federation.study()
    assert same(
        first(study, tmp_path / "run"), initial_weights(study, threads=1, advance=unwatched)
    )
    assert not (tmp_path / "run" / FILE).exists()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A short path, since Ray's sockets have to fit into 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_flowers_simulation_runtime_starts_from_the_file_too(
    started: Started, federation: Any, file: Path, tmp_path: Path, ray_folder: Path
) -> None:
    study = tmp_path / "study.toml"
    patient = {"round_timeout_seconds": 300.0}  # Ray's workers import torch on a busy machine
    content = started(training={"rounds": 1}, aggregation=patient)
    study.write_text(toml(content.model_dump(mode="json")))
    shutil.copy(file, tmp_path)
    sites = [federation.files[name] for name in ("east", "south")]
    result = subprocess.run(
        [MEDFL, "simulate", study, *sites, "--engine", "ray", "--out", tmp_path / "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(ray_folder)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "pretraining" not in result.stderr
    assert same(load_file(tmp_path / "run/checkpoints/initial.safetensors"), load_file(file))
