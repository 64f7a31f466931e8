"""Synthetic patients segmented by the final model, to be shown: no real image leaves a site."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
from torch import Tensor, nn

from medfl.config import StudyConfig
from medfl.data.labels import labels_from_regions
from medfl.data.transforms import PreparedCase
from medfl.durable import written_aside
from medfl.segmentation.inference import segment
from medfl.segmentation.model_file import read_model
from medfl.segmentation.notice import NOTICE
from medfl.study.pretraining import synthetic_patients

# Beyond every patient of a pretraining: nobody has trained on these.
FIRST_NUMBER = 90_000


def write_pictures(study: StudyConfig, *, model: Path, out: Path) -> None:
    """Segment a few fresh synthetic patients and write image, truth and segmentation as NIfTI.

    Args:
        study: Its `synthetic` section says what the patients look like; without it nothing is
            written.
        model: The model file.
        out: Folder ``predictions`` of a run; one folder a patient.
    """
    if study.synthetic is None or study.evaluation.pictures == 0:
        return
    _, network = read_model(model)
    with tempfile.TemporaryDirectory(prefix="medfl-synthetic-") as folder:
        store = synthetic_patients(
            study,
            study.synthetic,
            count=study.evaluation.pictures,
            folder=Path(folder),
            first_number=FIRST_NUMBER,
        )
        for index in range(len(store)):
            case = store.prepared(index)[0]
            _write(network, case, study=study, folder=out / f"synthetic-{index + 1}")


def _write(network: nn.Module, case: PreparedCase, *, study: StudyConfig, folder: Path) -> None:
    predicted = segment(network, case.image_CDHW, window_size=study.input.window, device="cpu")
    shown = study.input.modalities[-1]
    volumes = {
        shown: case.image_CDHW[-1],
        "truth": labels_from_regions(
            case.regions_RDHW, scheme="brats", regions=study.input.regions
        ),
        "segmentation": labels_from_regions(
            predicted > 0.5, scheme="brats", regions=study.input.regions
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume in volumes.items():
        _save(volume, folder / f"{name}.nii.gz", spacing_mm=case.spacing_mm)


def _save(volume_DHW: Tensor, path: Path, *, spacing_mm: tuple[float, float, float]) -> None:
    values = volume_DHW.numpy()
    values = values.astype(np.float32 if values.dtype.kind == "f" else np.uint8)
    image = nibabel.Nifti1Image(values, np.diag([*spacing_mm, 1.0]))
    image.header["descrip"] = NOTICE.encode()
    with written_aside(path) as draft:
        nibabel.save(image, draft)
