"""A bundle runs under MONAI alone, and gives the masks that medfl gives."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medfl.config.site import SiteData
from medfl.errors import ConfigError, FederationError
from medfl.prediction.cohort import predict_case
from medfl.prediction.monai_bundle import MODEL, export_bundle
from medfl.prediction.predictor import Predictor
from tests.prediction.conftest import SPEC, write_model

CASE = "BraTS2021_00001"
PROGRAM = """
import json, sys
from monai.bundle import run
config = "configs/inference.json"
run(config_file=config, bundle_root=".", datalist=json.loads(sys.argv[1]))
"""
PRIVACY = [
    {"site": "north", "epsilon_pld": 7.9954, "delta": 1e-5, "budget": 10.0, "revision": 2},
    {"site": "west", "epsilon_pld": 3.2, "delta": 1e-6, "budget": 4.0, "revision": 2},
]


@pytest.fixture
def run_dir(model: Path, tmp_path: Path) -> Path:
    """A finished run, as far as a bundle looks at it."""
    folder = tmp_path / "run"
    (folder / MODEL).parent.mkdir(parents=True)
    (folder / MODEL).write_bytes(model.read_bytes())
    (folder / "study.json").write_text(json.dumps({"id": "first", "training": {"rounds": 30}}))
    (folder / "privacy.json").write_text(json.dumps(PRIVACY))
    return folder


def test_the_card_says_what_every_site_promised(run_dir: Path, tmp_path: Path) -> None:
    out = export_bundle(run_dir, tmp_path / "bundle")
    card = (out / "docs" / "README.md").read_text()
    assert "| north | 8.00 | 1e-05 | 10 |" in card
    assert "| west | 3.20 | 1e-06 | 4 |" in card
    assert "not a medical device" in card
    assert "T1 with contrast, T2-FLAIR" in card
    assert "It began from random weights." in card


@pytest.mark.parametrize("old", [0, 1, 2])
def test_a_run_of_medfl_0_1_is_not_called_private(old: int, run_dir: Path, tmp_path: Path) -> None:
    entries = json.loads((run_dir / "privacy.json").read_text())
    for entry in entries[:old]:
        del entry["revision"]
    (run_dir / "privacy.json").write_text(json.dumps(entries))
    out = export_bundle(run_dir, tmp_path / "bundle")
    card = (out / "docs" / "README.md").read_text()
    described = json.loads((out / "configs" / "metadata.json").read_text())["description"]
    for text in (card, described):
        assert ("patient-level differential privacy" in text) == (old == 0)
        assert ("noise of medfl 0.1" in text) == (old > 0)
    assert ("Do not rely on it" in card) == (old > 0)
    assert ("learns about any one patient no more" in card) == (old == 0)


def test_nothing_is_overwritten_and_an_unfinished_run_is_refused(
    run_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="new or empty folder"):
        export_bundle(run_dir, run_dir)
    (run_dir / "privacy.json").unlink()
    with pytest.raises(FederationError, match=r"privacy\.json: expected a finished run"):
        export_bundle(run_dir, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_monai_alone_gives_the_same_masks(
    run_dir: Path, patients: Path, data: SiteData, tmp_path: Path
) -> None:
    out = export_bundle(run_dir, tmp_path / "bundle")
    files = [str(patients / CASE / f"{CASE}_{ending}.nii.gz") for ending in ("t1ce", "flair")]
    # No medfl in sight: an import of it would fail.
    hide = tmp_path / "hide" / "medfl"
    hide.mkdir(parents=True)
    (hide / "__init__.py").write_text("raise ImportError('the bundle needs medfl')\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM),
            json.dumps([{"image": files}]),
        ],
        cwd=out,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(hide.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[:3000]
    (saved,) = (out / "eval").rglob("*.nii.gz")
    theirs = np.asarray(nibabel.load(saved).dataobj)
    predict_case(
        Predictor(run_dir / MODEL, device="cpu"),
        patients / CASE,
        data=data,
        out=tmp_path / "mask.nii.gz",
        probabilities=True,
    )
    ours = np.asarray(nibabel.load(tmp_path / "mask_probabilities.nii.gz").dataobj) > 0.5
    theirs = theirs.reshape(ours.shape)
    assert ours.any(axis=(0, 1, 2)).all()
    assert np.count_nonzero(ours != theirs) <= 1e-3 * np.count_nonzero(ours)
    image = nibabel.load(patients / CASE / f"{CASE}_t1.nii.gz")
    assert np.allclose(nibabel.load(saved).affine, image.affine, atol=1e-4)


def test_its_metadata_has_what_monai_asks_for(run_dir: Path, tmp_path: Path) -> None:
    out = export_bundle(run_dir, tmp_path / "bundle")
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    for key in ("version", "changelog", "monai_version", "pytorch_version", "network_data_format"):
        assert metadata[key]


def test_a_network_that_wants_the_size_of_its_images_is_told(run_dir: Path, tmp_path: Path) -> None:
    arguments = {"feature_size": 2, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}
    spec = replace(SPEC, network="UNETR", arguments=arguments, crop_size=(16, 16, 16))
    write_model(run_dir / MODEL, spec=replace(spec, window_size=(16, 16, 16)))
    out = export_bundle(run_dir, tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(out / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(out / "models" / "model.pt", weights_only=True))
    assert network(torch.zeros(1, len(spec.modalities), 16, 16, 16)).shape[-1] == 16
