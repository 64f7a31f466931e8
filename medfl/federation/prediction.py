"""From one case folder and a model file to a mask on the case's own grid."""

from __future__ import annotations

from pathlib import Path

import nibabel

from medfl.config.site import LabelScheme, Layout, SiteData
from medfl.data.labels import labels_from_regions
from medfl.data.layouts import read_case
from medfl.data.transforms import Frame, prepare_image, restore
from medfl.errors import ConfigError
from medfl.segmentation.devices import device_named
from medfl.segmentation.inference import segment
from medfl.segmentation.model_file import NOTICE, read_model


def predict_case(
    case_folder: Path,
    *,
    model: Path,
    out: Path,
    layout: Layout,
    label_scheme: LabelScheme,
    device: str,
) -> None:
    """Segment one case and write the mask as uint8 NIfTI.

    Args:
        case_folder: Folder with one file a modality.
        model: A model file.
        out: Where the mask goes; must not exist.
        layout: How the files are called.
        label_scheme: What the written values mean.
        device: Where the network runs.

    Raises:
        ConfigError: If `out` or `device` cannot be used.
        DataError: If the case cannot be read.
        ModelError: If the model cannot be used.
    """
    if not out.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"--out: expected a name ending in .nii or .nii.gz, found {out.name!r}.")
    if out.exists():
        raise ConfigError(f"{out}: expected a new file, found one that exists.")
    device_named(device, where="--device")
    spec, network = read_model(model)
    case = read_case(
        case_folder,
        data=SiteData(
            root=case_folder.parent,
            layout=layout,
            label_scheme=label_scheme,
            modalities=spec.modalities,
        ),
    )
    frame = Frame(
        modalities=spec.modalities,
        regions=spec.regions,
        spacing=spec.spacing,
        label_scheme=label_scheme,
    )
    image = prepare_image(case, frame)
    probabilities = segment(network, image.as_tensor(), crop_size=spec.crop_size, device=device)
    labels = labels_from_regions(probabilities > 0.5, scheme=label_scheme, regions=spec.regions)
    mask = restore(labels, image=image)
    mask.header["descrip"] = NOTICE.encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(mask, out)
