"""A tiny model that says something of every image, and a few synthetic patients to try it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.config.site import MODALITY_ORDER, SiteData
from medfl.phantom.patient import hospital_looks, write_hospital
from medfl.segmentation.model_file import ModelSpec, model_bytes
from medfl.segmentation.networks import trainable_state

SPEC = ModelSpec(
    network="SegResNet",
    arguments={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    modalities=("t1c", "t2f"),
    regions=("WT", "ET"),
    spacing="native",
    crop_size=(16, 16, 16),
    window_size=(16, 16, 16),
)


def write_model(path: Path, *, spec: ModelSpec = SPEC, missing: str = "refuse") -> Path:
    """Random weights, under which some voxels are inside and some are not."""
    network = spec.build(seed=3)
    provenance = {"missing_modality": missing, "medfl": "0", "pretraining_steps": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_bytes(trainable_state(network), spec=spec, provenance=provenance))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.safetensors")


@pytest.fixture
def filling_model(tmp_path: Path) -> Path:
    """One that was trained to do without some modalities."""
    return write_model(tmp_path / "filling.safetensors", missing="zero-fill")


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic patients in the layout of BraTS 2021."""
    root = tmp_path_factory.mktemp("patients")
    look = next(iter(hospital_looks().values()))
    write_hospital(
        root,
        patients=3,
        shape=(30, 34, 26),
        spacing=(5.6, 5.0, 6.8),
        look=look,
        skull_stripped=True,
        seed=5,
        first_number=0,
        on_patient=lambda _: None,
    )
    return root


@pytest.fixture
def data(patients: Path) -> SiteData:
    return SiteData(
        root=patients, layout="brats2021", label_scheme="brats", modalities=MODALITY_ORDER
    )
