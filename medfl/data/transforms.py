"""From the files of a case to tensors in the study's frame, and back.

Every scan is turned to the orientation RAS, brought to the study's spacing, and normalised by
itself alone. Axes D, H, W are right, anterior and superior. Prepared cases are cached on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd, Spacingd, SpatialResample
from torch import Tensor

from medfl.config.site import LabelScheme, Modality, Region
from medfl.data.cache import MAX_BYTES, TensorCache
from medfl.data.cohort import Case, Patient
from medfl.data.intensity import normalise_scan
from medfl.data.label_schemes import require_regions
from medfl.data.labels import regions_of
from medfl.data.nifti_faults import MAX_VOXELS
from medfl.data.nifti_scans import MASK, read_scans
from medfl.errors import DataError

# Part of every cache key: a change of the preparation below must change this number.
_PREPARATION_VERSION = 3
_MAX_CENTRES = 20_000
# Darker than this part of typical tissue in every modality is air: no place for a crop's centre.
_AIR = 0.25
_DEFAULT_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How a case becomes tensors.

    Attributes:
        modalities: Channels of the image, in this order.
        regions: Channels of the multi-hot mask, in this order.
        spacing: Millimetres along right, anterior, superior; ``native`` keeps each scan's.
        label_scheme: What the masks' values mean.
        absent: Modalities that the site does not have; their channels are 0, which is air.

    Raises:
        DataError: If the scheme cannot show a region, or no modality is left.
    """

    modalities: tuple[Modality, ...]
    regions: tuple[Region, ...]
    spacing: tuple[float, float, float] | Literal["native"]
    label_scheme: LabelScheme
    absent: tuple[Modality, ...] = ()

    def __post_init__(self) -> None:
        require_regions(self.regions, scheme=self.label_scheme)
        if not self.present:
            raise DataError(f"Expected at least one of {list(self.modalities)}, found none.")

    @property
    def present(self) -> tuple[Modality, ...]:
        """The modalities that are read."""
        return tuple(name for name in self.modalities if name not in self.absent)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCase:
    """One case in the frame.

    Attributes:
        image_CDHW: float32, one channel a modality; 0 is air, 1 typical tissue.
        regions_RDHW: uint8 multi-hot, one channel a region.
        foreground: int64 flat voxel indices inside any region; evenly thinned to at most 20,000.
        background: The same for head voxels outside all regions.
        spacing_mm: Voxel size along right, anterior, superior.
    """

    image_CDHW: Tensor
    regions_RDHW: Tensor
    foreground: Tensor
    background: Tensor
    spacing_mm: tuple[float, float, float]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors."""
        tensors = (self.image_CDHW, self.regions_RDHW, self.foreground, self.background)
        return sum(tensor.nbytes for tensor in tensors)


def prepare_image(case: Case, frame: Frame) -> MetaTensor:
    """Read the images of a case, mask or not.

    Args:
        case: The files.
        frame: The frame to bring them to.

    Returns:
        float32 image_CDHW; its metadata let `restore_probabilities` find the way back.

    Raises:
        DataError: If a file cannot be read or the images' grids differ.
    """
    return _image(_load(case, frame, keys=frame.present), frame)


def prepare_case(case: Case, frame: Frame) -> PreparedCase:
    """Read images and mask of a case.

    Raises:
        DataError: If a file is missing or cannot be read, grids differ, or the mask's values
            contradict the scheme.
    """
    if case.mask is None:
        raise DataError(
            f"{case.case_id}: expected a mask, found none. Add it, or leave the case out."
        )
    loaded = _load(case, frame, keys=(*frame.present, MASK))
    image = _image(loaded, frame)
    try:
        regions = regions_of(
            loaded[MASK].as_tensor()[0], scheme=frame.label_scheme, regions=frame.regions
        )
    except DataError as error:
        raise DataError(f"{case.mask}: {error}") from None
    spacing = tuple(float(size) for size in image.pixdim)
    image_CDHW = image.as_tensor()
    foreground, background = _centres(image_CDHW, regions)
    return PreparedCase(
        image_CDHW=image_CDHW,
        regions_RDHW=regions,
        foreground=foreground,
        background=background,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def restore_probabilities(probabilities_RDHW: Tensor, *, image: MetaTensor) -> Tensor:
    """Bring probabilities from the frame back to the grid of the scanner's files.

    Args:
        probabilities_RDHW: In the frame.
        image: What `prepare_image` returned for the case.

    Returns:
        float32 of shape (R, X, Y, Z) along the source's stored axes.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float64)
    restored: MetaTensor = resample(
        MetaTensor(probabilities_RDHW.cpu().to(torch.float32), affine=image.affine),
        dst_affine=torch.as_tensor(np.asarray(image.meta["original_affine"], dtype=np.float64)),
        spatial_size=[int(size) for size in image.meta["spatial_shape"]],
    )
    values: Tensor = restored.as_tensor().clamp(0, 1).to(torch.float32)
    return values


class PatientStore:
    """The prepared cases of some patients, by number; cached on disk and, bounded, in memory.

    Args:
        patients: Whose cases to prepare; every case needs a mask.
        frame: The frame to bring them to.
        cache_dir: Folder of the disk cache; made private (mode 0700).
        memory_bytes: Most memory for the cases used last.
        cache_bytes: Most disk for prepared cases.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        frame: Frame,
        cache_dir: Path,
        *,
        memory_bytes: int = _DEFAULT_MEMORY_BYTES,
        cache_bytes: int = MAX_BYTES,
    ) -> None:
        self._patients = tuple(patients)
        self._frame = frame
        self._cache = TensorCache(cache_dir, max_bytes=cache_bytes)
        self._memory_bytes = memory_bytes
        self._memory: OrderedDict[str, PreparedCase] = OrderedDict()
        self._verified: dict[tuple[int, int], str] = {}

    @property
    def frame(self) -> Frame:
        """The frame that the cases are brought to."""
        return self._frame

    def __len__(self) -> int:
        return len(self._patients)

    def verify(self, indices: Iterable[int]) -> None:
        """Look at every file of some patients, and prepare whoever is not in the cache yet.

        From then on `prepared` serves these patients as they were now, as long as the cache holds
        them: a file that changes or vanishes later changes nothing.

        Args:
            indices: Numbers of the patients.

        Raises:
            DataError: If a case cannot be prepared.
            OSError: If a prepared case cannot be stored.
        """
        for index in indices:
            for number, case in enumerate(self._patients[index].cases):
                key = self._key(case)
                # Known content could be prepared before, also where it had to make room since.
                if not self._cache.knows(key):
                    self._cache.write(key, self._packed_case(case, key))
                self._verified[index, number] = key

    def fill(self, index: int) -> None:
        """Prepare the cases of one patient that the disk cache does not hold.

        Several threads may do so at the same time, each for another patient.

        Raises:
            DataError: If a case cannot be prepared.
            OSError: If a prepared case cannot be stored.
        """
        for case in self._patients[index].cases:
            key = self._key(case)
            if not self._cache.holds(key):
                self._cache.write(key, self._packed_case(case, key))

    def holds(self, index: int) -> bool:
        """Whether the disk cache holds all cases of one patient.

        Raises:
            DataError: If a file cannot be read.
        """
        return all(self._cache.holds(self._key(case)) for case in self._patients[index].cases)

    def prepared(self, index: int) -> tuple[PreparedCase, ...]:
        """All cases of patient number `index`.

        Raises:
            DataError: If a case cannot be prepared.
        """
        return tuple(
            self._prepared_case(case, self._verified.get((index, number), ""))
            for number, case in enumerate(self._patients[index].cases)
        )

    def _prepared_case(self, case: Case, verified: str) -> PreparedCase:
        key = verified or self._key(case)
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        packed = self._cache.read(key)
        if packed is None:
            key = self._key(case)  # the files may have changed since they were verified
            packed = self._packed_case(case, key)
            # On a full disk the case is prepared again when it is needed again.
            with contextlib.suppress(OSError):
                self._cache.write(key, packed)
        # Freshly prepared tensors are rounded like stored ones: both reads give the same values.
        prepared = _unpacked(packed, self._frame)
        self._remember(key, prepared)
        return prepared

    def _packed_case(self, case: Case, key: str) -> dict[str, Tensor]:
        """A case read from its files, which must still be those that `key` stands for."""
        packed = _packed(prepare_case(case, self._frame))
        if self._key(case) != key:
            raise DataError(
                f"{case.case_id}: expected files that stay as they are, found one that changed "
                "while it was read. Try again once nobody writes to the folder."
            )
        return packed

    def _key(self, case: Case) -> str:
        """A hash of everything that the prepared case depends on: contents, frame, preparation."""
        paths = [case.images[key] for key in self._frame.present if key in case.images]
        if case.mask is not None:
            paths.append(case.mask)
        try:
            contents = [self._cache.content_digest(path) for path in paths]
        except OSError as error:
            raise DataError(f"{case.case_id}: expected readable files, found: {error}") from None
        identity = {
            "preparation": [_PREPARATION_VERSION, monai.__version__],
            "frame": asdict(self._frame),
            "channels": dict(case.channels),
            "contents": contents,
        }
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def _remember(self, key: str, prepared: PreparedCase) -> None:
        self._memory[key] = prepared
        while sum(case.nbytes for case in self._memory.values()) > self._memory_bytes:
            self._memory.popitem(last=False)


def _load(case: Case, frame: Frame, *, keys: Sequence[str]) -> dict[str, MetaTensor]:
    """Files in the frame's orientation and spacing: key -> MetaTensor of shape (1, D, H, W)."""
    paths: dict[str, Path] = {key: path for key, path in case.images.items() if key in keys}
    if case.mask is not None and MASK in keys:
        paths[MASK] = case.mask
    missing = [key for key in keys if key not in paths]
    if missing:
        raise DataError(f"{case.case_id}: expected images {list(keys)}, found no {missing}.")
    turn = Orientationd(keys, axcodes="RAS", labels=None)
    loaded: dict[str, MetaTensor] = turn(
        read_scans(paths, channels=case.channels, volumes=case.volumes)
    )
    for modality in frame.present:  # before resampling, which would blur the statistics
        loaded[modality] = _normalised(loaded[modality], paths[modality])
    if frame.spacing == "native":
        return loaded
    _require_bounded(loaded[frame.present[0]], frame.spacing, case_id=case.case_id)
    modes = ["nearest" if key == MASK else "bilinear" for key in keys]
    resample = Spacingd(keys, pixdim=frame.spacing, mode=modes, padding_mode="border")
    resampled: dict[str, MetaTensor] = resample(loaded)
    return resampled


def _require_bounded(image: MetaTensor, spacing: Sequence[float], *, case_id: str) -> None:
    """Refuse an image that a study's finer voxels would blow up."""
    finer = math.prod(image.pixdim.tolist()) / math.prod(spacing)
    voxels = image[0].numel() * finer
    if voxels > MAX_VOXELS:
        raise DataError(
            f"{case_id}: expected at most {MAX_VOXELS} voxels at the study's spacing, found "
            f"{voxels:.3g}. Correct pixdim and the transform, or ask for a coarser study."
        )


def _normalised(image: MetaTensor, path: Path) -> MetaTensor:
    values = image.as_tensor().numpy()
    if not np.isfinite(values).all():
        raise DataError(
            f"{path}: expected finite voxels, found NaN or infinity. Export the image again."
        )
    scan = torch.from_numpy(normalise_scan(values[0]))[None]
    return MetaTensor(scan, meta=image.meta)


def _image(loaded: Mapping[str, MetaTensor], frame: Frame) -> MetaTensor:
    first = loaded[frame.present[0]]
    air = torch.zeros_like(first.as_tensor())
    channels = [
        air if name in frame.absent else loaded[name].as_tensor() for name in frame.modalities
    ]
    return MetaTensor(torch.cat(channels), meta=first.meta)


def _centres(image_CDHW: Tensor, regions_RDHW: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices of tumour voxels, and of head voxels without tumour."""
    tumour = regions_RDHW.any(dim=0).flatten()
    head = (image_CDHW.amax(dim=0) > _AIR).flatten()
    return _thinned(tumour.nonzero()[:, 0]), _thinned((head & ~tumour).nonzero()[:, 0])


def _thinned(indices: Tensor) -> Tensor:
    """At most 20,000 of the indices, evenly spread, the same ones every time."""
    if len(indices) <= _MAX_CENTRES:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, _MAX_CENTRES, dtype=torch.float64).long()]


def _packed(case: PreparedCase) -> dict[str, Tensor]:
    """Small tensors for the disk: half precision, and all regions as bits of one byte."""
    bits = torch.tensor([1 << bit for bit in range(len(case.regions_RDHW))], dtype=torch.uint8)
    return {
        "image": case.image_CDHW.to(torch.float16),
        "regions": (case.regions_RDHW * bits[:, None, None, None]).sum(dim=0, dtype=torch.uint8),
        "foreground": case.foreground.to(torch.int32),
        "background": case.background.to(torch.int32),
        "spacing": torch.tensor(case.spacing_mm, dtype=torch.float64),
    }


def _unpacked(tensors: Mapping[str, Tensor], frame: Frame) -> PreparedCase:
    bits = torch.arange(len(frame.regions), dtype=torch.uint8)[:, None, None, None]
    right, anterior, superior = tensors["spacing"].tolist()
    return PreparedCase(
        image_CDHW=tensors["image"].to(torch.float32),
        regions_RDHW=(tensors["regions"][None] >> bits) & 1,
        foreground=tensors["foreground"].to(torch.int64),
        background=tensors["background"].to(torch.int64),
        spacing_mm=(right, anterior, superior),
    )
