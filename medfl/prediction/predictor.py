"""`Predictor`: a model file and a device, which turn cases into masks on the cases' own grids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medfl.config.site import MaskScheme, Modality, Region
from medfl.data.cohort import Case
from medfl.data.framing import restore_probabilities
from medfl.data.labels import labels_from_regions
from medfl.data.transforms import Frame, prepare_image
from medfl.errors import DataError
from medfl.prediction.mask_file import INSIDE
from medfl.segmentation.devices import device_named
from medfl.segmentation.inference import segment
from medfl.segmentation.model_file import fills_missing, read_model


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """What a model says of one case, on the grid of the case's files.

    Attributes:
        regions: Names of the channels.
        probabilities_RXYZ: float32, along the stored axes of the source.
    """

    regions: tuple[Region, ...]
    probabilities_RXYZ: Tensor

    def labels(self, scheme: MaskScheme) -> NDArray[np.uint8]:
        """uint8 mask (X, Y, Z) in a label scheme; where regions contradict, the innermost decides.

        Raises:
            DataError: If the scheme cannot show the model's regions.
        """
        inside = self.probabilities_RXYZ > INSIDE
        labels = labels_from_regions(inside, scheme=scheme, regions=self.regions)
        return np.asarray(labels.numpy(), dtype=np.uint8)


class Predictor:
    """A model that is ready to segment.

    Args:
        model: A model file.
        device: Where the network runs.
        mirrored: Also segment the mirror image, left to right, and average both (test-time
            augmentation).

    Raises:
        ConfigError: If the device is not there.
        ModelError: If the model cannot be used.
    """

    def __init__(self, model: str | Path, *, device: str = "cpu", mirrored: bool = False) -> None:
        model = Path(model)
        self._device = device_named(device, where="--device")
        self.spec, self._network = read_model(model)
        self._fills = fills_missing(model)
        self._mirrored = mirrored

    def modalities(self, available: tuple[Modality, ...]) -> tuple[Modality, ...]:
        """Those of the available modalities that the model takes.

        Raises:
            DataError: If it needs others and was not trained to do without.
        """
        present = tuple(name for name in self.spec.modalities if name in available)
        if not present or (present != self.spec.modalities and not self._fills):
            raise DataError(
                f"Expected the model's modalities {list(self.spec.modalities)}, found "
                f"{list(available)}. Use a model trained with missing_modality = 'zero-fill'."
            )
        return present

    def segment(self, case: Case, *, label_scheme: MaskScheme) -> Segmentation:
        """Segment one case.

        Raises:
            DataError: If it cannot be read, lacks a modality that the model needs, or the scheme
                cannot show the model's regions.
        """
        present = self.modalities(tuple(case.images))
        frame = Frame(
            modalities=self.spec.modalities,
            regions=self.spec.regions,
            spacing=self.spec.spacing,
            label_scheme=label_scheme,
            absent=tuple(name for name in self.spec.modalities if name not in present),
        )
        image = prepare_image(case, frame)
        probabilities = segment(
            self._network,
            image.as_tensor(),
            window_size=self.spec.window_size,
            device=self._device,
            mirrored=self._mirrored,
        )
        return Segmentation(
            regions=self.spec.regions,
            probabilities_RXYZ=restore_probabilities(probabilities, image=image),
        )
